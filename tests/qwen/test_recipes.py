from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from qframe.diffusion.packing import unpack_pictures
from qframe.errors import ConfigError, DataError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Record, Request
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import to_pixels
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request, settle
from qframe_qwen.options import TextToImageSettings
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.options import EditSettings
from qframe_qwen_edit.recipe import EditRecipe, EditRequest
from tests.qwen import tiny

A, B = Picture("a.png", b"a"), Picture("b.png", b"b")


def record(*references: Picture, **more: Any) -> Record:
    return Record(id="7", origin="rows.jsonl:8", prompt="make it blue", target=A, references=references, **more)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def edit(model: ModelFolder) -> EditRecipe:
    return EditRecipe(None, model)


@pytest.fixture
def text(model: ModelFolder) -> TextToImageRecipe:
    return TextToImageRecipe(None, model)


# -- settings ---------------------------------------------------------------------------------------------------------


def published(model: ModelFolder, tmp_path: Path, table: Any = None) -> ModelFolder:
    folder = tmp_path / "published"
    shutil.copytree(model.folder / "vae", folder / "vae")
    if table is not None:
        (folder / "qframe.json").write_text(json.dumps({"recipe": table}))
    return ModelFolder.open(folder)


def test_a_published_model_has_the_published_geometry(model: ModelFolder, tmp_path: Path) -> None:
    wanted = Geometry(1024 * 1024, 1024 * 1024, 32)
    assert EditRecipe(None, published(model, tmp_path)).geometry == wanted


def test_a_model_says_what_sizes_it_was_made_for(edit: EditRecipe, text: TextToImageRecipe) -> None:
    assert edit.geometry == text.geometry == Geometry(tiny.AREA, tiny.AREA, tiny.MULTIPLE)


def test_the_configuration_overrules_the_model(model: ModelFolder) -> None:
    recipe = EditRecipe(EditSettings(min_area=48 * 48, multiple=16), model)
    assert recipe.geometry == Geometry(48 * 48, tiny.AREA, 16)


@pytest.mark.parametrize("kind", [EditRecipe, TextToImageRecipe])
def test_areas_that_contradict_each_other_are_a_configuration_error(kind: Any, model: ModelFolder) -> None:
    settings = {EditRecipe: EditSettings, TextToImageRecipe: TextToImageSettings}[kind]
    with pytest.raises(ConfigError, match=f"recipe: min_area 2000000 is larger than max_area {tiny.AREA}"):
        kind(settings(min_area=2_000_000), model)


@pytest.mark.parametrize("table", [{"min_area": "small"}, {"multiple": 0}, {"references": "maybe"}, []])
def test_a_damaged_qframe_json_is_named(model: ModelFolder, tmp_path: Path, table: Any) -> None:
    with pytest.raises(WeightsError, match=r"qframe\.json"):
        EditRecipe(None, published(model, tmp_path, table))


# -- training ---------------------------------------------------------------------------------------------------------


def test_one_picture_goes_into_encoder_and_codec(edit: EditRecipe) -> None:
    """The dual path: the same picture, in the same geometry, for both; and for the empty prompt."""
    inputs = edit.inputs(record(B))
    assert inputs.target.picture is A
    assert [one.picture for one in inputs.references] == [B]
    assert inputs.conditioning.pictures == inputs.references
    assert inputs.unconditional is not None
    assert inputs.unconditional.pictures == inputs.references
    assert inputs.unconditional.prompt == " "
    assert {one.geometry for one in (inputs.target, *inputs.references)} == {edit.geometry}


def test_a_loss_map_is_brought_into_the_targets_geometry(edit: EditRecipe, text: TextToImageRecipe) -> None:
    for inputs in (edit.inputs(record(B, loss_map=B)), text.inputs(record(loss_map=B))):
        assert inputs.loss_map is not None
        assert inputs.loss_map.geometry == inputs.target.geometry


def test_records_with_the_wrong_number_of_references_are_named(edit: EditRecipe, text: TextToImageRecipe) -> None:
    for recipe, wrong in ((edit, record()), (edit, record(A, B)), (text, record(B))):
        with pytest.raises(DataError, match=r"rows\.jsonl:8"):
            recipe.inputs(wrong)


def test_text_to_image_can_be_mixed_in(model: ModelFolder, parts: Parts) -> None:
    recipe = EditRecipe(EditSettings(references="optional"), model)
    assert recipe.inputs(record()).references == ()
    request = recipe.request_for(record())
    assert request.image is None
    plan = plan_request(recipe, attrs.evolve(request, num_inference_steps=2, true_cfg_scale=1.0), parts)
    assert plan.references is None
    assert plan.start.grids == (((1, 4, 4),),)


def test_a_records_request_asks_for_its_target(edit: EditRecipe, text: TextToImageRecipe) -> None:
    assert edit.request_for(record(B)).image == (B,)
    assert edit.request_for(record(B)).prompt == ("make it blue",)
    assert text.request_for(record()).prompt == ("make it blue",)


# -- planning ---------------------------------------------------------------------------------------------------------


def test_references_are_the_codecs_mode_of_the_fitted_picture(edit: EditRecipe, parts: Parts) -> None:
    image = tiny.picture(0, 96, 96)
    plan = plan_request(edit, EditRequest(prompt="blue", image=image, true_cfg_scale=1.0), parts)
    assert plan.references is not None
    ((latents,),) = unpack_pictures(plan.references, parts.denoiser_spec.patch)
    assert torch.equal(latents, parts.codec.encode(to_pixels(image)[None])[0])


@pytest.mark.parametrize(("size", "fitted"), [((96, 96), (96, 96)), ((50, 90), (64, 128)), ((300, 100), (160, 64))])
def test_the_output_has_the_size_of_the_fitted_picture(
    edit: EditRecipe, parts: Parts, size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    request = EditRequest(
        prompt="blue", image=tiny.picture(0, size[1], size[0]), true_cfg_scale=1.0, num_inference_steps=1
    )
    plan = plan_request(edit, request, parts)
    with torch.no_grad():
        (made,) = run_plan(plan, parts.denoiser, parts.sampler)
    assert made.shape == (3, *fitted)


def test_the_negative_prompt_sees_the_same_picture(edit: EditRecipe, parts: Parts) -> None:
    image = tiny.picture(0, 96, 96)
    plan = plan_request(edit, EditRequest(prompt="blue", negative_prompt="bad", image=image), parts)
    wanted = parts.encoder.encode(["bad"], [[image]])
    assert plan.uncond is not None
    assert torch.equal(plan.uncond.embeds, wanted.embeds)


def test_tokens_of_pictures_are_never_cut(edit: EditRecipe, text: TextToImageRecipe, parts: Parts) -> None:
    """Diffusers' edit pipelines cut nothing; a picture of the published size alone has over 1,000 tokens."""
    prompt, image = "make the circle blue", tiny.picture(0, 96, 96)
    request = EditRequest(prompt=prompt, negative_prompt=" ", image=image, max_sequence_length=3)
    plan = plan_request(edit, request, parts)
    assert plan.uncond is not None
    assert plan.cond.lengths == parts.encoder.encode([prompt], [[image]]).lengths
    assert plan.uncond.lengths == parts.encoder.encode([" "], [[image]]).lengths
    assert plan_request(
        text, Request(prompt=prompt, max_sequence_length=3, true_cfg_scale=1.0), parts
    ).cond.lengths == (3,)


def test_several_pictures_per_prompt_keep_prompt_picture_and_noise_together(edit: EditRecipe, parts: Parts) -> None:
    """Upstream tiles the pictures and interleaves the prompts, so that its second picture is wrong."""
    images = [tiny.picture(seed, 96, 96) for seed in range(2)]
    prompts = ["make the circle blue", "remove"]
    both = EditRequest(
        prompt=prompts,
        negative_prompt=[" ", "bad"],
        image=images,
        num_images_per_prompt=2,
        num_inference_steps=2,
        generator=[seeded(i) for i in range(4)],
    )
    with torch.no_grad():
        together = run_plan(plan_request(edit, both, parts), parts.denoiser, parts.sampler)
        for place, (prompt, negative, image) in enumerate(
            [(prompts[0], " ", images[0])] * 2 + [(prompts[1], "bad", images[1])] * 2
        ):
            alone = EditRequest(
                prompt=prompt, negative_prompt=negative, image=image, num_inference_steps=2, generator=seeded(place)
            )
            (wanted,) = run_plan(plan_request(edit, alone, parts), parts.denoiser, parts.sampler)
            torch.testing.assert_close(together[place], wanted, rtol=1e-4, atol=1e-4)


def test_one_picture_serves_all_prompts(edit: EditRecipe, parts: Parts) -> None:
    image = tiny.picture(0, 96, 96)
    plan = plan_request(edit, EditRequest(prompt=["blue", "red"], image=image, true_cfg_scale=1.0), parts)
    assert plan.references is not None
    first, second = plan.references.tokens.chunk(2)
    assert torch.equal(first, second)


def test_a_request_splits_by_the_sizes_of_its_pictures(edit: EditRecipe, parts: Parts) -> None:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 40, 90), tiny.picture(2, 90, 90)]
    generators = [seeded(i) for i in range(6)]
    request = EditRequest(
        prompt=["a", "b", "c"], negative_prompt="n", image=images, num_images_per_prompt=2, generator=generators
    )
    settled = settle(edit, request, parts)
    assert [one.places for one in settled] == [(0, 1, 4, 5), (2, 3)]
    assert [one.request.prompt for one in settled] == [("a", "c"), ("b",)]
    assert [one.request.negative_prompt for one in settled] == [("n", "n"), ("n",)]
    assert settled[1].request.generator == generators[2:4]


def test_a_named_size_needs_no_split(edit: EditRecipe, parts: Parts) -> None:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 40, 90)]
    request = EditRequest(prompt=["a", "b"], image=images, height=64, width=64, true_cfg_scale=1.0)
    (settled,) = settle(edit, request, parts)
    assert settled.places == (0, 1)
    plan = edit.plan(settled, parts)
    assert plan.start.grids == (((1, 4, 4),),) * 2
    assert plan.references is not None
    assert plan.references.grids == (((1, 6, 6),), ((1, 8, 4),))


def as_array(value: Any) -> np.ndarray[Any, Any]:
    return np.asarray(value)


@pytest.mark.parametrize("kind", ["path", "string", "uint8", "float", "tensor", "batch"])
def test_a_picture_may_come_in_any_form(edit: EditRecipe, parts: Parts, tmp_path: Path, kind: str) -> None:
    image = tiny.picture(0, 96, 96)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy()).float() / 255
    value: Any = {
        "path": tmp_path / "a.png",
        "string": str(tmp_path / "a.png"),
        "uint8": array,
        "float": array.astype(np.float32) / 255,
        "tensor": tensor,
        "batch": tensor[None],
    }[kind]
    plans = [
        plan_request(edit, EditRequest(prompt="a", image=given, true_cfg_scale=1.0), parts) for given in (value, image)
    ]
    assert plans[0].references is not None
    assert plans[1].references is not None
    assert torch.equal(plans[0].references.tokens, plans[1].references.tokens)


SQUARE = tiny.picture(0, 96, 96)
BAD = {
    "image": (EditRequest(prompt="a"), "no image"),
    "images": (EditRequest(prompt=["a", "b", "c"], image=[SQUARE] * 2), "2 given for 3 prompts"),
    "sizes": (EditRequest(prompt=["a", "b"], image=[SQUARE, tiny.picture(0, 40, 90)]), "different sizes"),
    "height": (EditRequest(prompt="a", image=SQUARE, height=100), "height must be a multiple of 16"),
    "width": (EditRequest(prompt="a", image=SQUARE, width=8), "width must be a multiple of 16"),
    "steps": (EditRequest(prompt="a", image=SQUARE, num_inference_steps=0), "num_inference_steps"),
    "count": (EditRequest(prompt="a", image=SQUARE, num_images_per_prompt=0), "num_images_per_prompt"),
    "prompts": (EditRequest(prompt=[], image=SQUARE), "no prompt"),
    "prompt": (EditRequest(prompt=[3], image=SQUARE), "prompt must be text"),  # type: ignore[list-item]
    "negative": (EditRequest(prompt="a", negative_prompt=["b", "c"], image=SQUARE), "negative_prompt"),
    "generator": (EditRequest(prompt="a", image=SQUARE, generator=[seeded()] * 2), "2 generators"),
    "latents": (EditRequest(prompt="a", image=SQUARE, latents=torch.zeros(1, 4, 8, 8)), "latents"),
    "sigmas": (EditRequest(prompt="a", image=SQUARE, sigmas=[0.1, 0.5]), "sigmas must fall"),
    "array": (EditRequest(prompt="a", image=np.zeros((4, 4, 7))), "got shape"),
    "range": (EditRequest(prompt="a", image=np.full((96, 96, 3), 3.0)), r"in \[0, 1\]"),
    "type": (EditRequest(prompt="a", image=[{"a": 1}]), "dict is no picture"),  # type: ignore[list-item]
    "number": (EditRequest(prompt="a", image=3), "int is no picture"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_requests_that_cannot_be_met_are_refused_before_any_model_runs(
    edit: EditRecipe, parts: Parts, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model ran")

    monkeypatch.setattr(parts.encoder, "encode", refuse)
    monkeypatch.setattr(parts.codec, "encode", refuse)
    request, message = BAD[case]
    with pytest.raises((ConfigError, DataError), match=message):
        plan_request(edit, request, parts)


def test_guidance_asked_for_by_half_is_said(
    text: TextToImageRecipe, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    for arguments, said in (
        ({"true_cfg_scale": 4.0}, "none is given"),
        ({"true_cfg_scale": 1.0, "negative_prompt": "bad"}, "running without guidance"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            plan = plan_request(text, Request(prompt="a", **arguments), parts)  # type: ignore[arg-type]
        assert plan.guide is None
        assert said in caplog.text


def test_text_to_image_has_the_models_side(text: TextToImageRecipe, model: ModelFolder, parts: Parts) -> None:
    assert plan_request(text, Request(prompt="a", true_cfg_scale=1.0), parts).start.grids == (((1, 4, 4),),)
    wider = TextToImageRecipe(TextToImageSettings(side=96), model)
    assert plan_request(wider, Request(prompt="a", true_cfg_scale=1.0, height=32), parts).start.grids == (((1, 2, 6),),)
