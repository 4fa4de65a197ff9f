"""Inpainting and image to image against diffusers' pipelines, on the same weights, at every stage of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Recipe, Request
from qframe.pictures.pixels import from_pixels
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe.sample.starts import first_step, source_tokens
from qframe_qwen.oracles import EditInpaint, Inpaint, TextToImage
from qframe_qwen.recipe import SAMPLING, TextToImageRecipe
from qframe_qwen_inpaint.blending import keep_unmasked
from qframe_verify.compare import EXACT
from tests.parity import (
    CASES_BEGUN,
    SIZES,
    asked,
    assert_every_step_agrees,
    assert_same,
    masks,
    our_steps,
    pictures,
    request_for,
    seeded,
    seeded_each,
    steps_of,
    upstream_steps,
)
from tests.qwen import tiny
from tests.qwen.conftest import load_parts


def arguments_of(shape: str, batch: int, strength: float, guidance: float | None, steps: int) -> dict[str, Any]:
    """Pictures of another size than the result, so that resizing is compared too."""
    height, width = SIZES[shape]
    images = pictures(batch, (height + 6, width + 10))
    return asked(batch, guidance=guidance, steps=steps, strength=strength, image=images, height=height, width=width)


@CASES_BEGUN
def test_image_to_image_equals_diffusers(
    image_to_image: Recipe, parts: Parts, shape: str, batch: int, strength: float, scale: float | None, steps: int
) -> None:
    arguments = arguments_of(shape, batch, strength, scale, steps)
    ran = assert_same(image_to_image, arguments, parts, TextToImage()).steps
    assert len(ran) == steps - first_step(steps, strength, SAMPLING)


@CASES_BEGUN
@pytest.mark.parametrize("kind", ["random", "full"])
def test_inpainting_equals_diffusers(
    inpaint: Recipe,
    parts: Parts,
    kind: str,
    shape: str,
    batch: int,
    strength: float,
    scale: float | None,
    steps: int,
) -> None:
    arguments = arguments_of(shape, batch, strength, scale, steps)
    arguments["mask_image"] = masks(kind, batch, (SIZES[shape][0] + 6, SIZES[shape][1] + 10))
    assert_same(inpaint, arguments, parts, Inpaint())


@CASES_BEGUN
def test_blending_by_an_empty_mask_equals_diffusers(
    model: ModelFolder,
    parts: Parts,
    inpaint: Recipe,
    shape: str,
    batch: int,
    strength: float,
    scale: float | None,
    steps: int,
) -> None:
    """A request with a black mask is refused, but the function on plans takes one."""
    arguments = arguments_of(shape, batch, strength, scale, steps)
    asked_upstream = request_for(inpaint, arguments, mask_image=masks("empty", batch, SIZES[shape]), generator=seeded())
    wanted = [step.tokens for step in Inpaint().trace(asked_upstream, parts, inpaint).steps]
    images = [image.resize(SIZES[shape][::-1], Image.Resampling.LANCZOS) for image in arguments["image"]]
    common = {name: value for name, value in arguments.items() if name not in ("image", "strength")}
    request = Request(**common, generator=seeded())
    with torch.no_grad():
        original = source_tokens(images, request, parts)
        plan = plan_request(TextToImageRecipe(None, model), request, parts)
        found = steps_of(
            keep_unmasked(
                plan,
                original,
                torch.zeros(original.shape[0], 1),
                first_step(request.num_inference_steps or 0, strength, SAMPLING),
            ),
            parts,
        )
    assert_every_step_agrees(found, wanted)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("family", ["image_to_image", "inpaint", "edit_inpaint"])
def test_one_step_is_finite(request: pytest.FixtureRequest, parts: Parts, family: str) -> None:
    arguments = arguments_of("square", 1, 1.0, 4.0, 1)
    arguments |= {} if family == "image_to_image" else {"mask_image": masks("random", 1, (70, 74))}
    recipe = request.getfixturevalue(family)
    (found,) = our_steps(recipe, request_for(recipe, arguments, generator=seeded()), parts)
    assert found.isfinite().all()


def test_networks_that_diffusers_loaded_itself_give_the_same(
    inpaint: Recipe, parts: Parts, inpaint_pipeline: Any
) -> None:
    """The oracles here run with networks that we loaded; this one does not."""
    arguments = arguments_of("wide", 3, 0.6, 4.0, 4) | {"mask_image": masks("random", 3, (38, 106))}
    wanted = upstream_steps(inpaint_pipeline, **arguments, generator=seeded())
    found = our_steps(inpaint, request_for(inpaint, arguments, generator=seeded()), parts)
    assert_every_step_agrees(found, wanted)


def test_a_generator_per_picture_and_custom_sigmas_equal_diffusers(inpaint: Recipe, parts: Parts) -> None:
    arguments = arguments_of("square", 3, 0.7, 4.0, 4) | {"sigmas": [1.0, 0.7, 0.4, 0.2]}
    arguments["mask_image"] = masks("random", 3, (64, 64))
    assert_same(inpaint, arguments, parts, Inpaint(), generator=seeded_each(3))


@pytest.mark.parametrize("batch", [1, 3])
def test_one_picture_and_mask_serve_all_prompts_as_in_diffusers(inpaint: Recipe, parts: Parts, batch: int) -> None:
    arguments = arguments_of("square", batch, 0.6, None, 4)
    arguments |= {"image": arguments["image"][0], "mask_image": masks("random", 1, (64, 64))[0]}
    assert_same(inpaint, arguments, parts, Inpaint())


def test_generators_are_left_as_diffusers_leaves_them(inpaint: Recipe, parts: Parts, inpaint_pipeline: Any) -> None:
    """It draws for an encoding of the masked picture that it never uses: a second call must agree too."""
    arguments = arguments_of("square", 1, 0.6, None, 2) | {"mask_image": masks("random", 1, (64, 64))}
    ours, theirs = seeded(), seeded()
    for _ in range(2):
        wanted = upstream_steps(inpaint_pipeline, **arguments, generator=theirs)
        assert_every_step_agrees(our_steps(inpaint, request_for(inpaint, arguments, generator=ours), parts), wanted)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_torchs_own_generator_gives_what_it_gives_diffusers(
    inpaint: Recipe, parts: Parts, inpaint_pipeline: Any
) -> None:
    arguments = arguments_of("square", 1, 0.6, None, 2) | {"mask_image": masks("random", 1, (64, 64))}
    torch.manual_seed(5)
    wanted = upstream_steps(inpaint_pipeline, **arguments)
    torch.manual_seed(5)
    assert_every_step_agrees(our_steps(inpaint, request_for(inpaint, arguments), parts), wanted)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_bfloat16_equals_diffusers_to_the_bit(model: ModelFolder, inpaint: Recipe, strength: float) -> None:
    """Encoding, noising and blending in the order and dtype of diffusers."""
    loaded = load_parts(model)
    for module in (loaded.denoiser.module, loaded.encoder.model, loaded.codec.vae):  # type: ignore[attr-defined]
        module.to(torch.bfloat16)
    arguments = arguments_of("square", 1, strength, 4.0, 4) | {"mask_image": masks("random", 1, (64, 64))}
    assert assert_same(inpaint, arguments, loaded, Inpaint(), tolerance=EXACT).start.dtype == torch.bfloat16


# -- pictures ---------------------------------------------------------------------------------------------------------


def painted(size: tuple[int, int], box: tuple[int, int, int, int], grey: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=grey)
    return mask


def our_picture(recipe: Recipe, parts: Parts, arguments: dict[str, Any], **more: Any) -> Image.Image:
    with torch.no_grad():
        plan = plan_request(recipe, request_for(recipe, arguments, **more), parts)
        (pixels,) = run_plan(plan, parts.denoiser, parts.sampler)
    return from_pixels(pixels)


def assert_same_picture(found: Image.Image, wanted: Image.Image) -> None:
    """To the level of rounding to 8 bits."""
    assert found.size == wanted.size
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(wanted, dtype=int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize(
    ("size", "box", "padding", "result"),
    [
        ((150, 110), (40, 30, 80, 70), 8, (64, 64)),
        ((150, 110), (0, 0, 30, 100), 0, (64, 64)),  # taller than wide, at the left border
        ((150, 110), (110, 80, 149, 109), 16, (32, 96)),  # at the lower right corner
        ((90, 200), (5, 150, 85, 199), 32, (96, 32)),  # the proportions do not fit into the picture: edges drawn out
        ((200, 60), (80, 10, 190, 50), 12, (64, 64)),
        ((96, 64), (0, 0, 96, 64), 0, (64, 96)),
    ],
)
def test_crop_and_overlay_equal_diffusers(
    inpaint: Recipe,
    parts: Parts,
    inpaint_pipeline: Any,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    padding: int,
    result: tuple[int, int],
) -> None:
    arguments = asked(
        1,
        guidance=None,
        steps=2,
        image=tiny.picture(3, *size),
        mask_image=painted(size, box),
        padding_mask_crop=padding,
        height=result[0],
        width=result[1],
    )
    wanted = inpaint_pipeline(**arguments, generator=seeded()).images[0]
    found = our_picture(inpaint, parts, arguments, generator=seeded())
    assert_same_picture(found, wanted)
    assert found.size == size


def test_grey_masks_mix_in_the_overlay_as_in_diffusers(inpaint: Recipe, parts: Parts, inpaint_pipeline: Any) -> None:
    mask = painted((120, 100), (30, 30, 90, 80), grey=180)
    arguments = asked(1, guidance=None, steps=2, image=tiny.picture(3, 120, 100), mask_image=mask)
    arguments |= {"padding_mask_crop": 5, "height": 64, "width": 64}
    wanted = inpaint_pipeline(**arguments, generator=seeded()).images[0]
    assert_same_picture(our_picture(inpaint, parts, arguments, generator=seeded()), wanted)


def test_decoded_picture_equals_diffusers(inpaint: Recipe, parts: Parts, inpaint_pipeline: Any) -> None:
    arguments = arguments_of("wide", 1, 0.6, 4.0, 4) | {"mask_image": masks("random", 1, SIZES["wide"])[0]}
    wanted = inpaint_pipeline(**arguments, generator=seeded()).images[0]
    assert_same_picture(our_picture(inpaint, parts, arguments, generator=seeded()), wanted)


# -- mixed with editing -----------------------------------------------------------------------------------------------


@CASES_BEGUN
@pytest.mark.parametrize("kind", ["random", "full"])
def test_editing_inside_a_mask_equals_diffusers(
    edit_inpaint: Recipe,
    upstream_parts: Parts,
    kind: str,
    shape: str,
    batch: int,
    strength: float,
    scale: float | None,
    steps: int,
) -> None:
    """The edit recipe through `keep-unmasked` is diffusers' QwenImageEditInpaintPipeline, but for the reference.

    There that is a sample of the codec's posterior, here as in every edit the mode, which the oracle shows it too.
    """
    size = {"square": (70, 70), "wide": (40, 90), "tall": (160, 64)}[shape]
    arguments = asked(
        batch,
        guidance=scale,
        steps=steps,
        strength=strength,
        image=pictures(batch, size),
        mask_image=masks(kind, batch, size),
    )
    assert_same(edit_inpaint, arguments, upstream_parts, EditInpaint(), generator=seeded_each(batch))
