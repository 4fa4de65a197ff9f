"""Text to image and editing against diffusers' pipelines, on the same weights, at every stage of a run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Recipe, Request
from qframe.sample.running import sample_plan
from qframe.sample.settling import plan_request
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.oracles import Edit, TextToImage
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe, EditRequest
from qframe_verify.compare import EXACT
from tests.parity import (
    CASES,
    PROMPTS,
    SIZES,
    asked,
    assert_every_step_agrees,
    assert_same,
    our_steps,
    seeded,
    seeded_each,
    upstream_steps,
)
from tests.qwen import tiny
from tests.qwen.conftest import load_parts


@pytest.fixture(autouse=True)
def quiet_upstream() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@CASES
def test_text_to_image_equals_diffusers(
    model: ModelFolder, parts: Parts, shape: str, batch: int, scale: float | None, steps: int
) -> None:
    height, width = SIZES[shape]
    arguments = asked(batch, guidance=scale, steps=steps, height=height, width=width)
    assert len(assert_same(TextToImageRecipe(None, model), arguments, parts, TextToImage()).steps) == steps


@CASES
def test_edit_equals_diffusers(
    model: ModelFolder, upstream_parts: Parts, shape: str, batch: int, scale: float | None, steps: int
) -> None:
    width, height = {"square": (70, 70), "wide": (90, 40), "tall": (40, 90)}[shape]
    images = [tiny.picture(seed, width, height) for seed in range(batch)]
    arguments = asked(batch, guidance=scale, steps=steps, image=images)
    recipe, generators = EditRecipe(None, model), seeded_each(batch)
    assert len(assert_same(recipe, arguments, upstream_parts, Edit(), generator=generators).steps) == steps


def test_a_prompt_moves_the_latents_by_about_one(model: ModelFolder, parts: Parts) -> None:
    """The tests above could not fail if prompts did nothing."""
    recipe = EditRecipe(None, model)
    ends = [
        our_steps(recipe, EditRequest(prompt=prompt, image=tiny.picture(0, 64, 64), true_cfg_scale=1.0,
                                      num_inference_steps=4, generator=seeded()), parts)[-1]
        for prompt in PROMPTS[:2]
    ]  # fmt: skip
    assert 0.2 < (ends[0] - ends[1]).abs().mean() < 3


def test_networks_that_diffusers_loaded_itself_give_the_same(
    model: ModelFolder,
    parts: Parts,
    upstream_parts: Parts,
    text_pipeline: Any,
    edit_pipeline: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oracles above run with networks that we loaded; these do not, and bring pictures to size by themselves."""
    arguments = asked(2, guidance=4.0, steps=4, height=32, width=64)
    wanted = upstream_steps(text_pipeline, **arguments, generator=seeded())
    request = Request(**arguments, generator=seeded())
    assert_every_step_agrees(our_steps(TextToImageRecipe(None, model), request, parts), wanted)

    given = asked(1, guidance=4.0, steps=4, image=tiny.picture(0, 90, 40))
    real = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(tiny.AREA, ratio))
    wanted = upstream_steps(edit_pipeline, **given, generator=seeded())
    found = our_steps(EditRecipe(None, model), EditRequest(**given, generator=seeded()), upstream_parts)
    assert_every_step_agrees(found, wanted)


def test_edit_to_another_size_equals_diffusers(model: ModelFolder, upstream_parts: Parts) -> None:
    arguments = asked(1, guidance=4.0, steps=4, image=tiny.picture(0, 64, 64), height=48, width=80)
    assert_same(EditRecipe(None, model), arguments, upstream_parts, Edit())


def test_one_generator_per_picture_and_custom_sigmas_equal_diffusers(model: ModelFolder, parts: Parts) -> None:
    arguments = asked(3, guidance=4.0, steps=3, height=32, width=64, sigmas=[1.0, 0.6, 0.25])
    assert_same(TextToImageRecipe(None, model), arguments, parts, TextToImage(), generator=seeded_each(3))


def test_given_latents_equal_diffusers(model: ModelFolder, parts: Parts, text_pipeline: Any) -> None:
    """Upstream takes them packed; dense ones mean the same."""
    dense = torch.randn(1, 4, 8, 8)
    packed = text_pipeline._pack_latents(dense, 1, 4, 8, 8)
    arguments = asked(1, guidance=4.0, steps=2, height=64, width=64)
    wanted = upstream_steps(text_pipeline, **arguments, latents=packed)
    for latents in (packed, dense):
        found = our_steps(TextToImageRecipe(None, model), Request(**arguments, latents=latents), parts)
        assert_every_step_agrees(found, wanted)


def test_decoded_pictures_equal_diffusers(model: ModelFolder, parts: Parts, text_pipeline: Any) -> None:
    arguments = asked(2, guidance=4.0, steps=4, height=32, width=64)
    wanted = text_pipeline(**arguments, generator=seeded(), output_type="pt").images
    with torch.no_grad():
        plan = plan_request(TextToImageRecipe(None, model), Request(**arguments, generator=seeded()), parts)
        found = torch.stack(plan.decode(sample_plan(plan, parts.denoiser, parts.sampler)))
    torch.testing.assert_close(found * 0.5 + 0.5, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("batch", [1, 3])
def test_one_step_is_finite(model: ModelFolder, parts: Parts, text_pipeline: Any, batch: int) -> None:
    """Upstream gives NaN here (#14411): its last sigma, 1, cannot be stretched to shift_terminal."""
    arguments = asked(batch, guidance=4.0, steps=1, height=64, width=64)
    assert upstream_steps(text_pipeline, **arguments, generator=seeded())[0].isnan().all()
    (found,) = our_steps(TextToImageRecipe(None, model), Request(**arguments, generator=seeded()), parts)
    assert found.isfinite().all()


@pytest.mark.parametrize("scale", [None, 4.0])
def test_one_step_of_an_edit_is_finite(model: ModelFolder, parts: Parts, scale: float | None) -> None:
    arguments = asked(1, guidance=scale, steps=1, image=tiny.picture(0, 64, 64))
    (found,) = our_steps(EditRecipe(None, model), EditRequest(**arguments, generator=seeded()), parts)
    assert found.isfinite().all()


@pytest.mark.parametrize("family", ["text", "edit"])
def test_bfloat16_equals_diffusers_to_the_bit(model: ModelFolder, family: str) -> None:
    """The same roundings in the same order: timestep before its division, product of a step before its sum."""
    parts = load_parts(model, QwenVLOptions(positions="upstream"))
    for module in (parts.encoder.model, parts.denoiser.module, parts.codec.vae):  # type: ignore[attr-defined]
        module.to(torch.bfloat16)
    recipe: Recipe = TextToImageRecipe(None, model) if family == "text" else EditRecipe(None, model)
    given = {"height": 64, "width": 64} if family == "text" else {"image": tiny.picture(0, 90, 40)}
    arguments = asked(1, guidance=4.0, steps=4, **given)
    oracle = TextToImage() if family == "text" else Edit()
    assert assert_same(recipe, arguments, parts, oracle, tolerance=EXACT).start.dtype == torch.bfloat16
