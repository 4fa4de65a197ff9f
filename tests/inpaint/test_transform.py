"""What holds of inpainting whatever diffusers does: identities, batches, masks, and requests that cannot be met."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from qframe.diffusion.packing import pack_latents, unpack_pictures
from qframe.errors import ConfigError, DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Recipe, Record, Request
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import from_pixels
from qframe.sample.running import run_plan, sample_plan
from qframe.sample.settling import plan_request, settle
from qframe.sample.starts import first_step, source_tokens, start_from
from qframe_qwen.recipe import SAMPLING, TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe, EditRequest
from qframe_qwen_inpaint.blending import keep_unmasked
from qframe_qwen_inpaint.crop import crop_box, fit_inside, put_back
from qframe_qwen_inpaint.masks import latent_mask
from qframe_qwen_inpaint.transform import InpaintRequest
from tests.parity import pictures, plain, seeded, steps_of
from tests.qwen import tiny

SQUARE = tiny.picture(0, 96, 96)
WHITE = Image.new("L", (96, 96), 255)


def half(size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A mask, its right half white."""
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def inpainting(**more: Any) -> dict[str, Any]:
    fields = {"prompt": "a", "image": SQUARE, "mask_image": half(), "true_cfg_scale": 1.0, "num_inference_steps": 4}
    return fields | more


def noise(count: int = 1, side: int = 12) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=seeded(1))


@torch.no_grad()
def result(recipe: Recipe, parts: Parts, **fields: Any) -> torch.Tensor:
    return sample_plan(plan_request(recipe, recipe.request_type(**fields), parts), parts.denoiser, parts.sampler)


def test_a_prompt_moves_the_latents(inpaint: Recipe, parts: Parts) -> None:
    """The tests against diffusers could not fail if prompts did nothing."""
    ends = [
        result(inpaint, parts, **inpainting(prompt=prompt, mask_image=WHITE, strength=1.0, generator=seeded()))
        for prompt in ("make the circle blue", "remove it")
    ]
    assert 0.1 < (ends[0] - ends[1]).abs().mean() < 3


# -- identities, exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@torch.no_grad()
def test_an_empty_mask_returns_the_source(model: ModelFolder, parts: Parts, strength: float) -> None:
    request = Request(prompt="a", true_cfg_scale=1.0, num_inference_steps=4, generator=seeded())
    plan = plan_request(TextToImageRecipe(None, model), request, parts)
    original = source_tokens([tiny.picture(0, 64, 64)], request, parts)
    kept = keep_unmasked(plan, original, torch.zeros_like(original), first_step(4, strength, SAMPLING))
    assert torch.equal(sample_plan(kept, parts.denoiser, parts.sampler), original)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@torch.no_grad()
def test_a_full_mask_is_image_to_image(model: ModelFolder, parts: Parts, strength: float) -> None:
    request = Request(prompt="a", true_cfg_scale=1.0, num_inference_steps=4, generator=seeded())
    plan = plan_request(TextToImageRecipe(None, model), request, parts)
    original = source_tokens([tiny.picture(0, 64, 64)], request, parts)
    steps = steps_of(keep_unmasked(plan, original, torch.ones_like(original), first_step(4, strength, SAMPLING)), parts)
    for one, other in zip(
        steps, steps_of(start_from(plan, original, first_step(4, strength, SAMPLING)), parts), strict=True
    ):
        assert torch.equal(one, other)


def test_a_full_mask_at_strength_1_is_text_to_image(model: ModelFolder, inpaint: Recipe, parts: Parts) -> None:
    common = {"prompt": "a", "negative_prompt": "b", "num_inference_steps": 4, "latents": noise()}
    found = result(inpaint, parts, **common, image=SQUARE, mask_image=WHITE, strength=1.0)
    wanted = result(TextToImageRecipe(None, model), parts, **common, height=96, width=96)
    assert torch.equal(found, wanted)


def test_a_full_mask_at_strength_1_is_editing(model: ModelFolder, edit_inpaint: Recipe, parts: Parts) -> None:
    image = tiny.picture(0, 50, 90)
    common = {"prompt": "a", "negative_prompt": "b", "num_inference_steps": 4, "image": image}
    common["latents"] = torch.randn(1, 4, 16, 8, generator=seeded(1))
    found = result(edit_inpaint, parts, **common, mask_image=WHITE.resize((50, 90)), strength=1.0)
    assert torch.equal(found, result(EditRecipe(None, model), parts, **common))


@pytest.mark.parametrize("family", ["inpaint", "edit_inpaint"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_what_the_mask_leaves_out_is_the_source_exactly(
    request: pytest.FixtureRequest, parts: Parts, family: str, strength: float
) -> None:
    recipe = request.getfixturevalue(family)
    fields = inpainting(strength=strength)
    found = result(recipe, parts, **fields, generator=seeded())
    source = source_tokens([SQUARE], plain(recipe.request_type(**fields), generator=seeded()), parts)
    left = torch.arange(36).reshape(6, 6)[:, :3].flatten()
    right = torch.arange(36).reshape(6, 6)[:, 3:].flatten()
    assert torch.equal(found[left], source[left])
    assert not torch.isclose(found[right], source[right], atol=1e-2).any(dim=1).all()


def test_strength_1_begins_with_the_noise_alone(model: ModelFolder, image_to_image: Recipe, parts: Parts) -> None:
    common = {"prompt": "a", "true_cfg_scale": 1.0, "num_inference_steps": 4, "latents": noise()}
    found = result(image_to_image, parts, **common, image=SQUARE, strength=1.0)
    assert torch.equal(found, result(TextToImageRecipe(None, model), parts, **common, height=96, width=96))


def test_without_an_image_image_to_image_is_text_to_image(
    model: ModelFolder, image_to_image: Recipe, parts: Parts
) -> None:
    common = {"prompt": "a", "true_cfg_scale": 1.0, "num_inference_steps": 2, "latents": noise(side=8)}
    assert torch.equal(result(image_to_image, parts, **common), result(TextToImageRecipe(None, model), parts, **common))


# -- strength ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(50, 0.6, 20), (4, 0.3, 2), (4, 1.0, 0), (20, 0.3, 14), (4, 0.1, 3), (1, 0.5, 0)]
)
def test_strength_cuts_the_schedule_as_diffusers_does(steps: int, strength: float, first: int) -> None:
    assert first_step(steps, strength, SAMPLING) == first


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="strength must be above 0 and at most 1"):
        first_step(4, strength, SAMPLING)


def test_strength_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves none of 50 steps"):
        first_step(50, 1e-20, SAMPLING)


@torch.no_grad()
def test_what_a_recipe_does_between_steps_goes_on(model: ModelFolder, parts: Parts) -> None:
    """Its own steps keep their numbers, and it comes before the blending."""
    request = Request(prompt="a", true_cfg_scale=1.0, num_inference_steps=5, generator=seeded())
    plan = plan_request(TextToImageRecipe(None, model), request, parts)
    recorded: list[int] = []

    def after_step(tokens: torch.Tensor, step: int) -> torch.Tensor:
        recorded.append(step)
        return torch.full_like(tokens, 3.0)

    original = source_tokens([tiny.picture(0, 64, 64)], request, parts)
    mask = torch.zeros(original.shape[0], 1)
    mask[:8] = 1
    kept = keep_unmasked(attrs.evolve(plan, after_step=after_step), original, mask, first_step(5, 0.6, SAMPLING))
    end = sample_plan(kept, parts.denoiser, parts.sampler)
    assert recorded == [2, 3, 4]
    assert torch.equal(end[:8], torch.full_like(end[:8], 3.0))
    assert torch.equal(end[8:], original[8:])


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["image_to_image", "inpaint", "edit_inpaint"])
def test_several_pictures_per_prompt_keep_prompt_picture_mask_and_noise_together(
    request: pytest.FixtureRequest, parts: Parts, family: str
) -> None:
    """Upstream tiles pictures and masks and interleaves prompts, so that its second picture is wrong."""
    recipe = request.getfixturevalue(family)
    prompts, negatives = ["make the circle blue", "remove"], [" ", "bad"]
    images, own_masks = pictures(2, (96, 96)), [half(), half().rotate(90)]
    given = {} if family == "image_to_image" else {"mask_image": own_masks}
    common = {"num_inference_steps": 3, "strength": 0.6}
    together = result(
        recipe,
        parts,
        prompt=prompts,
        negative_prompt=negatives,
        image=images,
        num_images_per_prompt=2,
        generator=[seeded(i) for i in range(4)],
        **common,
        **given,
    ).chunk(4)
    for place, prompt in enumerate([0, 0, 1, 1]):
        alone = result(
            recipe,
            parts,
            prompt=prompts[prompt],
            negative_prompt=negatives[prompt],
            image=images[prompt],
            generator=[seeded(place)],
            **common,
            **{name: values[prompt] for name, values in given.items()},
        )
        torch.testing.assert_close(together[place], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["image_to_image", "inpaint", "edit_inpaint"])
def test_a_request_splits_by_the_sizes_of_its_pictures(
    request: pytest.FixtureRequest, parts: Parts, family: str
) -> None:
    recipe = request.getfixturevalue(family)
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 40, 90), tiny.picture(2, 90, 90)]
    own_masks = [half(image.size) for image in images]
    given = {} if family == "image_to_image" else {"mask_image": own_masks}
    fields = {"prompt": ["a", "b", "c"], "image": images, "true_cfg_scale": 1.0, "num_images_per_prompt": 2, **given}
    settled = settle(recipe, recipe.request_type(**fields, num_inference_steps=2), parts)
    assert [one.places for one in settled] == [(0, 1, 4, 5), (2, 3)]
    assert [one.request.prompt for one in settled] == [("a", "c"), ("b",)]
    assert [one.grid for one in settled] == [(1, 6, 6), (1, 8, 4)]
    assert [recipe.plan(one, parts).start.grids[0][0] for one in settled] == [(1, 6, 6), (1, 8, 4)]
    with pytest.raises(ConfigError, match="different sizes"):
        plan_request(recipe, recipe.request_type(**fields), parts)


def test_one_mask_serves_pictures_of_several_sizes(inpaint: Recipe, parts: Parts) -> None:
    fields = {"prompt": ["a", "b"], "image": [tiny.picture(0, 96, 96), tiny.picture(1, 40, 90)], "mask_image": half()}
    first, second = settle(inpaint, inpaint.request_type(**fields), parts)
    assert [len(one.masks) for one in (first, second)] == [1, 1]  # type: ignore[attr-defined]


def test_the_result_has_the_size_of_the_picture_in_its_geometry(inpaint: Recipe, parts: Parts) -> None:
    """Upstream squeezes it into a square unless it is told height and width."""
    plan = plan_request(
        inpaint, InpaintRequest(**inpainting(image=tiny.picture(0, 50, 90), mask_image=half((50, 90)))), parts
    )
    assert plan.start.grids == (((1, 8, 4),),)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_white_is_repainted_grey_by_its_half_and_edges_may_be_soft() -> None:
    mask = Image.new("L", (32, 16))
    mask.putpixel((0, 0), 128)
    mask.putpixel((8, 0), 127)
    mask.paste(255, (16, 0, 24, 4))
    assert latent_mask(mask, "hard", 8).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    soft = latent_mask(mask, "soft", 8)
    torch.testing.assert_close(soft[0], torch.tensor([128 / 255 / 64, 127 / 255 / 64, 0.5, 0]))


def test_soft_edges_mix_source_and_result(inpaint: Recipe, parts: Parts) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1)))
    fields = inpainting(mask_image=ramp, strength=1.0)
    hard, soft = (
        plan_request(inpaint, inpaint.request_type(**fields, mask_edges=edges, generator=seeded()), parts)
        for edges in ("hard", "soft")
    )
    assert hard.after_step is not None
    assert soft.after_step is not None
    tokens = torch.full_like(hard.start.tokens, 100.0)
    mixed = {name: plan.after_step(tokens, 3) for name, plan in (("hard", hard), ("soft", soft))}  # type: ignore[misc]
    ((dense,),) = unpack_pictures(hard.start.with_tokens(mixed["soft"]), 2)
    assert (dense.diff(dim=-1)[0] > 0).all()  # more of the 100 from left to right
    assert len(mixed["hard"].eq(100).all(dim=1).unique()) == 2


def test_a_mask_may_be_an_array_or_a_tensor_of_any_kind(inpaint: Recipe, parts: Parts) -> None:
    grey = np.asarray(half())
    forms = [half(), half().convert("1"), half().convert("RGB"), grey, grey > 0, torch.from_numpy(grey.copy())[None]]
    ends = [result(inpaint, parts, **inpainting(mask_image=mask, generator=seeded())) for mask in forms]
    assert all(torch.equal(ends[0], end) for end in ends)


def test_transparent_parts_of_a_mask_are_kept() -> None:
    from qframe.sample.request_pictures import load_grey

    mask = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (255, 255, 255, 0))
    assert list(load_grey(mask).tobytes()) == [255, 0]


def test_mask_of_another_size_is_stretched_with_a_note(
    inpaint: Recipe, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="qframe_qwen_inpaint"):
        found = result(inpaint, parts, **inpainting(mask_image=half((48, 24)), generator=seeded()))
    assert "the mask has 48 x 24 pixels, its picture 96 x 96: the mask is stretched" in caplog.text
    assert torch.equal(found, result(inpaint, parts, **inpainting(generator=seeded())))


def test_masked_image_latents_are_taken_and_change_nothing(inpaint: Recipe, parts: Parts) -> None:
    ends = [
        result(inpaint, parts, **inpainting(generator=seeded(), masked_image_latents=given))
        for given in (None, torch.zeros(1, 4, 1, 12, 12))
    ]
    assert torch.equal(*ends)


# -- crops ------------------------------------------------------------------------------------------------------------


def test_a_crop_changes_nothing_outside_the_mask_to_the_pixel(inpaint: Recipe, parts: Parts) -> None:
    image, mask = tiny.picture(0, 301, 173), Image.new("L", (301, 173))
    ImageDraw.Draw(mask).rectangle((100, 50, 160, 90), fill=255)
    fields = inpainting(image=image, mask_image=mask, padding_mask_crop=10, height=64, width=64, strength=1.0)
    with torch.no_grad():
        plan = plan_request(inpaint, inpaint.request_type(**fields, generator=seeded()), parts)
        made = np.asarray(from_pixels(run_plan(plan, parts.denoiser, parts.sampler)[0]))
    assert made.shape == (173, 301, 3)
    kept = np.asarray(mask) == 0
    assert np.array_equal(made[kept], np.asarray(image)[kept])
    assert (made[~kept] != np.asarray(image)[~kept]).any(axis=1).mean() > 0.5


def test_pictures_of_one_call_have_crops_of_their_own(inpaint: Recipe, parts: Parts) -> None:
    images, small = pictures(2, (200, 200)), []
    for corner in (10, 120):
        mask = Image.new("L", (200, 200))
        mask.paste(255, (corner, corner, corner + 40, corner + 40))
        small.append(mask)
    common = {"num_inference_steps": 2, "padding_mask_crop": 8, "height": 64, "width": 64, "true_cfg_scale": 1.0}
    request = InpaintRequest(
        prompt=["a", "b"], image=images, mask_image=small, generator=[seeded(0), seeded(1)], **common
    )
    with torch.no_grad():
        together = run_plan(plan_request(inpaint, request, parts), parts.denoiser, parts.sampler)
        for place, prompt in enumerate("ab"):
            alone = InpaintRequest(
                prompt=prompt, image=images[place], mask_image=small[place], generator=[seeded(place)], **common
            )
            (wanted,) = run_plan(plan_request(inpaint, alone, parts), parts.denoiser, parts.sampler)
            torch.testing.assert_close(together[place], wanted, rtol=0, atol=2.1 / 255)


def test_putting_back_what_was_cropped_changes_nothing() -> None:
    image = tiny.picture(0, 160, 120)
    mask = Image.new("L", (160, 120))
    mask.paste(255, (30, 20, 62, 52))
    box = crop_box(mask, (64, 64), 0)
    assert box == (30, 20, 62, 52)
    assert put_back(fit_inside(image.crop(box), (32, 32)), image, mask, box).tobytes() == image.tobytes()


def test_a_sliver_of_a_picture_is_drawn_out() -> None:
    assert fit_inside(Image.new("RGB", (300, 1), "red"), (64, 64)).getcolors() == [(64 * 64, (255, 0, 0))]


# -- requests that cannot be met --------------------------------------------------------------------------------------

THIN = Image.new("L", (96, 96))
THIN.paste(255, (1, 0, 5, 96))
BAD = {
    "image": ({"image": None}, "no image is given"),
    "mask": ({"mask_image": None}, "no mask_image is given"),
    "black": ({"mask_image": Image.new("L", (96, 96))}, "black everywhere"),
    "dark": ({"mask_image": Image.new("L", (96, 96), 127)}, "black everywhere"),
    "black crop": ({"mask_image": Image.new("L", (96, 96)), "padding_mask_crop": 4}, "black everywhere"),
    "thin": ({"mask_image": THIN}, "covers no place of 8 x 8 pixels"),
    "strength": ({"strength": 0.0}, "strength must be above 0"),
    "step": ({"strength": 1e-20}, "leaves none"),
    "edges": ({"mask_edges": "round"}, "hard or soft"),
    "crop": ({"padding_mask_crop": -1}, "padding_mask_crop must be 0 or more"),
    "masks": ({"mask_image": [half()] * 2}, "mask_image: 2 given for 1 prompts"),
    "images": ({"image": [SQUARE] * 2}, "image: 2 given for 1 prompts"),
    "height": ({"height": 100}, "height must be a multiple of 16"),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps"),
    "latents": ({"latents": torch.zeros(1, 4, 8, 8)}, "latents"),
    "sigmas": ({"sigmas": [0.1, 0.5]}, "sigmas must fall"),
    "generator": ({"generator": [seeded()] * 2}, "2 generators"),
    "prompt": ({"prompt": []}, "no prompt"),
    "file": ({"mask_image": "nowhere.png"}, "nowhere.png"),
    "array": ({"mask_image": np.zeros((4, 4, 7))}, "mask_image: expected an array"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("family", ["inpaint", "edit_inpaint"])
def test_requests_that_cannot_be_met_are_refused_before_any_model_runs(
    request: pytest.FixtureRequest, parts: Parts, family: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model ran")

    recipe = request.getfixturevalue(family)
    monkeypatch.setattr(parts.encoder, "encode", refuse)
    monkeypatch.setattr(parts.codec, "encode", refuse)
    changes, message = BAD[case]
    with pytest.raises((ConfigError, DataError), match=message):
        plan_request(recipe, recipe.request_type(**inpainting(**changes)), parts)


def test_a_white_mask_is_allowed(inpaint: Recipe, parts: Parts) -> None:
    assert result(inpaint, parts, **inpainting(mask_image=WHITE, generator=seeded())).isfinite().all()


def test_strength_without_a_picture_is_refused(image_to_image: Recipe, parts: Parts) -> None:
    with pytest.raises(ConfigError, match="no image to start from"):
        plan_request(image_to_image, image_to_image.request_type(prompt="a", strength=0.5), parts)


def test_guidance_asked_for_by_half_is_said_once(
    inpaint: Recipe, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plan_request(inpaint, inpaint.request_type(**inpainting(true_cfg_scale=4.0)), parts)
    assert caplog.text.count("none is given") == 1


def test_image_to_image_trains_as_text_to_image(model: ModelFolder, image_to_image: Recipe) -> None:
    record = Record(id="1", origin="a:1", prompt="a", target=Picture("a.png", b"a"))
    alone = TextToImageRecipe(None, model)
    found, wanted = image_to_image.inputs(record), alone.inputs(record)
    assert found.target.geometry == wanted.target.geometry
    assert found.conditioning.prompt == wanted.conditioning.prompt
    assert image_to_image.request_for(record).prompt == ("a",)
    kind, other = type(image_to_image), type(alone)
    assert (kind.__module__, kind.__qualname__, kind.version) == (other.__module__, other.__qualname__, other.version)


def test_the_plugin_declares_without_torch() -> None:
    code = "import sys, qframe_qwen_inpaint.plugin as p; p.qframe_families(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_given_latents_are_the_noise(inpaint: Recipe, parts: Parts) -> None:
    """Upstream crashes on them."""
    given = noise()
    ends = [
        result(inpaint, parts, **inpainting(latents=latents, generator=seeded()))
        for latents in (given, pack_latents(given, 2))
    ]
    assert torch.equal(*ends)
    source = source_tokens([SQUARE], Request(prompt="a", generator=seeded()), parts)
    plan = plan_request(inpaint, InpaintRequest(**inpainting(latents=given, generator=seeded(), strength=0.6)), parts)
    sigma = plan.sigmas[0]
    torch.testing.assert_close(
        plan.start.tokens, (1 - sigma) * source + sigma * pack_latents(given, 2)[0], rtol=1e-6, atol=1e-6
    )


def test_the_edit_sees_the_picture_or_the_part_around_the_mask(edit_inpaint: Recipe, parts: Parts) -> None:
    """Both of its eyes do: encoder and codec."""
    image, mask = tiny.picture(0, 200, 200), Image.new("L", (200, 200))
    mask.paste(255, (100, 100, 148, 148))
    plan = plan_request(edit_inpaint, edit_inpaint.request_type(**inpainting(image=image, mask_image=mask)), parts)
    cropped = plan_request(
        edit_inpaint, edit_inpaint.request_type(**inpainting(image=image, mask_image=mask, padding_mask_crop=0)), parts
    )
    for found, shown in ((plan, image), (cropped, fit_inside(image.crop((100, 100, 148, 148)), (96, 96)))):
        wanted = plan_request(edit_inpaint.inner, EditRequest(prompt="a", image=shown, true_cfg_scale=1.0), parts)  # type: ignore[attr-defined]
        assert found.references is not None
        assert torch.equal(found.references.tokens, wanted.references.tokens)
        assert torch.equal(found.cond.embeds, wanted.cond.embeds)
