"""Against diffusers' pipelines, on the same weights, in float32, at every step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from torch import Tensor

from qframe.checkpoint import Checkpoint
from qframe.interfaces import Parts, Recipe
from qframe.pipeline import sample_plan
from qframe.types import Request
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe, EditRequest
from tests.qwen import tiny
from tests.qwen.conftest import load_parts

PROMPTS = ["make the circle blue", "remove it", "a very large red square at the top left of the picture"]
NEGATIVES = [" ", "blurry, bad quality", ""]
SIZES = {"square": (64, 64), "wide": (32, 96), "tall": (96, 32)}

GUIDED_AND_STEPS = [(None, 4), (4.0, 4), (7.5, 4), (4.0, 20), (None, 20)]


@pytest.fixture(autouse=True)
def tiny_area(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(tiny.AREA, ratio))
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def upstream_steps(pipeline: Any, **arguments: Any) -> list[Tensor]:
    """Latents [N, C] after every step, as diffusers has them."""
    steps: list[Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(state["latents"].flatten(0, 1).clone())
        return {}

    pipeline(**arguments, output_type="latent", callback_on_step_end=keep)
    return steps


@torch.no_grad()
def our_steps(recipe: Recipe, request: Request, parts: Parts) -> list[Tensor]:
    steps: list[Tensor] = []

    def keep(tokens: Tensor, step: int) -> Tensor:
        steps.append(tokens.clone())
        return tokens

    plan = attrs.evolve(recipe.plan(request, parts), after_step=keep)
    sample_plan(plan, parts.denoiser, parts.sampler)
    return steps


def assert_every_step_agrees(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted)
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, step=step: f"step {step}: {text}")


def request_arguments(batch: int, scale: float | None, steps: int, **more: Any) -> dict[str, Any]:
    negative = None if scale is None else NEGATIVES[:batch]
    return {
        "prompt": PROMPTS[:batch],
        "negative_prompt": negative,
        "true_cfg_scale": scale or 1.0,
        "num_inference_steps": steps,
        **more,
    }


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(("scale", "steps"), GUIDED_AND_STEPS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SIZES)
def test_text_to_image_equals_diffusers(
    checkpoint: Checkpoint, parts: Parts, text_pipeline: Any, shape: str, batch: int, scale: float | None, steps: int
) -> None:
    height, width = SIZES[shape]
    arguments = request_arguments(batch, scale, steps, height=height, width=width)
    wanted = upstream_steps(text_pipeline, **arguments, generator=seeded())
    found = our_steps(TextToImageRecipe(None, checkpoint), Request(**arguments, generator=seeded()), parts)
    assert_every_step_agrees(found, wanted)


@pytest.mark.parametrize(("scale", "steps"), GUIDED_AND_STEPS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", ["square", "wide", "tall"])
def test_edit_equals_diffusers(
    checkpoint: Checkpoint,
    upstream_parts: Parts,
    edit_pipeline: Any,
    shape: str,
    batch: int,
    scale: float | None,
    steps: int,
) -> None:
    recipe = EditRecipe(None, checkpoint)
    asked = {"square": (70, 70), "wide": (40, 90), "tall": (90, 40)}[shape]
    # In a list diffusers leaves the encoder's pictures unresized (VaeImageProcessor.resize passes lists through), so
    # those of a batch have the fitted size already.
    fitted = recipe.geometry.fit(*asked)
    height, width = asked if batch == 1 else fitted
    images = [tiny.picture(seed, width, height) for seed in range(batch)]
    arguments = request_arguments(batch, scale, steps, image=images[0] if batch == 1 else images)
    wanted = upstream_steps(edit_pipeline, **arguments, generator=seeded())
    found = our_steps(recipe, EditRequest(**arguments, generator=seeded()), upstream_parts)
    assert_every_step_agrees(found, wanted)


def test_a_prompt_moves_the_latents_by_about_one(checkpoint: Checkpoint, parts: Parts) -> None:
    """The tests above could not fail if prompts did nothing."""
    recipe = EditRecipe(None, checkpoint)
    ends = [
        our_steps(recipe, EditRequest(prompt=prompt, image=tiny.picture(0, 64, 64), true_cfg_scale=1.0,
                                      num_inference_steps=4, generator=seeded()), parts)[-1]
        for prompt in PROMPTS[:2]
    ]  # fmt: skip
    assert 0.2 < (ends[0] - ends[1]).abs().mean() < 3


def test_edit_to_another_size_equals_diffusers(
    checkpoint: Checkpoint, upstream_parts: Parts, edit_pipeline: Any
) -> None:
    arguments = request_arguments(1, 4.0, 4, image=tiny.picture(0, 64, 64), height=48, width=80)
    wanted = upstream_steps(edit_pipeline, **arguments, generator=seeded())
    found = our_steps(EditRecipe(None, checkpoint), EditRequest(**arguments, generator=seeded()), upstream_parts)
    assert_every_step_agrees(found, wanted)


def test_one_generator_per_picture_and_custom_sigmas_equal_diffusers(
    checkpoint: Checkpoint, parts: Parts, text_pipeline: Any
) -> None:
    arguments = request_arguments(3, 4.0, 3, height=32, width=64, sigmas=[1.0, 0.6, 0.25])
    generators = [[torch.Generator().manual_seed(i) for i in range(3)] for _ in range(2)]
    wanted = upstream_steps(text_pipeline, **arguments, generator=generators[0])
    found = our_steps(TextToImageRecipe(None, checkpoint), Request(**arguments, generator=generators[1]), parts)
    assert_every_step_agrees(found, wanted)


def test_given_latents_equal_diffusers(checkpoint: Checkpoint, parts: Parts, text_pipeline: Any) -> None:
    """Upstream takes them packed; dense ones mean the same."""
    dense = torch.randn(1, 4, 8, 8)
    packed = text_pipeline._pack_latents(dense, 1, 4, 8, 8)
    arguments = request_arguments(1, 4.0, 2, height=64, width=64)
    wanted = upstream_steps(text_pipeline, **arguments, latents=packed)
    for latents in (packed, dense):
        found = our_steps(TextToImageRecipe(None, checkpoint), Request(**arguments, latents=latents), parts)
        assert_every_step_agrees(found, wanted)


def test_decoded_pictures_equal_diffusers(checkpoint: Checkpoint, parts: Parts, text_pipeline: Any) -> None:
    arguments = request_arguments(2, 4.0, 4, height=32, width=64)
    wanted = text_pipeline(**arguments, generator=seeded(), output_type="pt").images
    with torch.no_grad():
        plan = TextToImageRecipe(None, checkpoint).plan(Request(**arguments, generator=seeded()), parts)
        found = torch.stack(plan.decode(sample_plan(plan, parts.denoiser, parts.sampler)))
    torch.testing.assert_close(found * 0.5 + 0.5, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("batch", [1, 3])
def test_one_step_is_finite(checkpoint: Checkpoint, parts: Parts, text_pipeline: Any, batch: int) -> None:
    """Upstream gives NaN here (#14411): its last sigma, 1, cannot be stretched to shift_terminal."""
    arguments = request_arguments(batch, 4.0, 1, height=64, width=64)
    assert upstream_steps(text_pipeline, **arguments, generator=seeded())[0].isnan().all()
    (found,) = our_steps(TextToImageRecipe(None, checkpoint), Request(**arguments, generator=seeded()), parts)
    assert found.isfinite().all()


def test_bfloat16_equals_diffusers_to_the_bit(checkpoint: Checkpoint) -> None:
    """The same roundings in the same order: timestep before its division, product of a step before its sum."""
    parts = load_parts(checkpoint)
    pipeline = tiny.upstream_text_to_image(checkpoint).to(torch.bfloat16)
    for module in (parts.encoder.model, parts.denoiser.module, parts.codec.vae):  # type: ignore[attr-defined]
        module.to(torch.bfloat16)
    arguments = request_arguments(1, 4.0, 4, height=64, width=64)
    wanted = upstream_steps(pipeline, **arguments, generator=seeded())
    found = our_steps(TextToImageRecipe(None, checkpoint), Request(**arguments, generator=seeded()), parts)
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
