"""Against diffusers' QwenImageEditPlusPipeline, on the same weights, in float32, at every step."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe_qwen.options import QwenVLOptions
from qframe_qwen_edit.plus import PUBLISHED, EditPlusRecipe, EditPlusRequest
from tests.parity import PROMPTS, assert_every_step_agrees, our_steps, seeded, upstream_steps
from tests.qwen import tiny
from tests.qwen.conftest import load_parts
from tests.qwen_edit_plus.conftest import Oracle

# Widths and heights. The last picture decides the size of the result.
LAST = {"square": (70, 70), "wide": (90, 40), "tall": (40, 90)}
OTHERS = [(50, 90), (120, 110)]


@pytest.fixture(autouse=True)
def tiny_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline_qwenimage_edit_plus.calculate_dimensions
    areas = {PUBLISHED["max_area"]: tiny.AREA, PUBLISHED["encoder_max_area"]: tiny.ENCODER_AREA}
    monkeypatch.setattr(
        pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda area, ratio: real(areas[area], ratio)
    )
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def references(count: int, shape: str = "square") -> list[Image.Image]:
    """So many pictures of different sizes, the last of them of that shape."""
    sizes = [*OTHERS[: count - 1], LAST[shape]]
    return [tiny.picture(seed, *size) for seed, size in enumerate(sizes)]


def arguments(count: int, scale: float | None, steps: int, shape: str = "square", **more: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPTS[0],
        "image": references(count, shape),
        "negative_prompt": None if scale is None else "blurry, bad quality",
        "true_cfg_scale": scale or 1.0,
        "num_inference_steps": steps,
        **more,
    }


def assert_equal_to_diffusers(oracle: Oracle, given: dict[str, Any]) -> None:
    wanted = upstream_steps(oracle.pipeline, **given, generator=seeded())
    recipe = EditPlusRecipe(None, oracle.model)
    found = our_steps(recipe, EditPlusRequest(**given, generator=seeded()), oracle.parts)
    assert_every_step_agrees(found, wanted)


CASES = [
    (1, "square", None, 4), (1, "tall", 4.0, 4), (2, "wide", 1.5, 4), (2, "tall", 7.5, 4), (3, "wide", 4.0, 4),
    (3, "square", None, 4), (2, "square", 4.0, 20),
]  # fmt: skip


@pytest.mark.parametrize(("count", "shape", "scale", "steps"), CASES)
def test_edit_plus_equals_diffusers(oracle: Oracle, count: int, shape: str, scale: float | None, steps: int) -> None:
    assert_equal_to_diffusers(oracle, arguments(count, scale, steps, shape))


@pytest.mark.thorough
@pytest.mark.parametrize(("scale", "steps"), [(None, 20), (1.5, 20), (4.0, 20), (7.5, 20)])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", LAST)
def test_edit_plus_equals_diffusers_everywhere(
    oracle: Oracle, count: int, shape: str, scale: float | None, steps: int
) -> None:
    assert_equal_to_diffusers(oracle, arguments(count, scale, steps, shape))


def test_another_size_equals_diffusers(oracle: Oracle) -> None:
    assert_equal_to_diffusers(oracle, arguments(2, 4.0, 4, height=48, width=80))


def test_bfloat16_equals_diffusers_to_the_bit(oracle: Oracle) -> None:
    """The same roundings in the same order, in encoder, codec and denoiser."""
    parts = load_parts(oracle.model, QwenVLOptions(template="edit-plus", positions="upstream"))
    for module in (parts.encoder.model, parts.denoiser.module, parts.codec.vae):  # type: ignore[attr-defined]
        module.to(torch.bfloat16)
    given = arguments(2, 4.0, 4, "wide")
    pipeline = tiny.upstream_edit_plus(oracle.model).to(torch.bfloat16)
    wanted = upstream_steps(pipeline, **given, generator=seeded())
    found = our_steps(EditPlusRecipe(None, oracle.model), EditPlusRequest(**given, generator=seeded()), parts)
    assert found[0].dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_decoded_pictures_equal_diffusers(oracle: Oracle) -> None:
    given = arguments(2, 4.0, 2, "wide")
    wanted = oracle.pipeline(**given, generator=seeded(), output_type="pt").images
    with torch.no_grad():
        plan = plan_request(
            EditPlusRecipe(None, oracle.model), EditPlusRequest(**given, generator=seeded()), oracle.parts
        )
        (found,) = run_plan(plan, oracle.parts.denoiser, oracle.parts.sampler)
    torch.testing.assert_close(found * 0.5 + 0.5, wanted[0], rtol=1e-4, atol=1e-5)


def test_every_reference_moves_the_result(oracle: Oracle) -> None:
    """The tests above could not fail if references, or their order, did nothing."""
    recipe = EditPlusRecipe(None, oracle.model)

    def end(images: list[Image.Image]) -> torch.Tensor:
        request = EditPlusRequest(**arguments(1, None, 4, image=images), generator=seeded())
        return our_steps(recipe, request, oracle.parts)[-1]

    first, second, last = references(3)
    both = end([first, second, last])
    for other in ([last], [first, last], [second, first, last]):
        assert (both - end(other)).abs().mean() > 0.02


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_one_step_is_finite(oracle: Oracle) -> None:
    """Upstream gives NaN here (#14411)."""
    given = arguments(2, 4.0, 1)
    assert upstream_steps(oracle.pipeline, **given, generator=seeded())[0].isnan().all()
    recipe = EditPlusRecipe(None, oracle.model)
    (found,) = our_steps(recipe, EditPlusRequest(**given, generator=seeded()), oracle.parts)
    assert found.isfinite().all()


def test_three_prompts_with_their_own_references_equal_three_runs(oracle: Oracle) -> None:
    """Upstream refuses more than one prompt. Larger batches round otherwise, which guidance enlarges."""
    recipe = EditPlusRecipe(None, oracle.model)
    sets = [references(count) for count in (1, 3, 2)]
    together = EditPlusRequest(
        prompt=PROMPTS,
        negative_prompt=["bad", " ", "blurry, bad quality"],
        image=sets,
        num_inference_steps=4,
        generator=[torch.Generator().manual_seed(i) for i in range(3)],
    )
    found = our_steps(recipe, together, oracle.parts)[-1].chunk(3)
    for place, images in enumerate(sets):
        alone = {
            "prompt": PROMPTS[place],
            "negative_prompt": together.negative_prompt[place],  # type: ignore[index]
            "image": images,
            "num_inference_steps": 4,
        }
        generator = torch.Generator().manual_seed(place)
        wanted = upstream_steps(oracle.pipeline, **alone, generator=generator)[-1]
        torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-4)


def test_several_pictures_per_prompt_equal_as_many_runs(oracle: Oracle) -> None:
    recipe = EditPlusRecipe(None, oracle.model)
    given = EditPlusRequest(**arguments(2, 4.0, 3), num_images_per_prompt=2)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    found = our_steps(recipe, attrs.evolve(given, generator=generators), oracle.parts)[-1].chunk(2)
    for place in range(2):
        generator = torch.Generator().manual_seed(place)
        wanted = upstream_steps(oracle.pipeline, **arguments(2, 4.0, 3), generator=generator)[-1]
        torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-4)
