from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from qframe.compose import recipe_class
from qframe.diffusion.packing import unpack_pictures
from qframe.errors import ConfigError, DataError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Record, Request
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import fit, to_pixels
from qframe.plugins.registry import load_registry
from qframe.sample.settling import plan_request, settle
from qframe_qwen_edit.options import EditPlusSettings
from qframe_qwen_edit.plus import EditPlusRecipe, EditPlusRequest
from tests.qwen import tiny

A, B, C = (Picture(f"{name}.png", name.encode()) for name in "abc")
SQUARE, WIDE, TALL = tiny.picture(0, 70, 70), tiny.picture(1, 90, 40), tiny.picture(2, 40, 90)


def record(*references: Picture, **more: Any) -> Record:
    return Record(id="7", origin="rows.jsonl:8", prompt="make it blue", target=A, references=references, **more)


def ask(prompt: Any = "blue", image: Any = SQUARE, **more: Any) -> EditPlusRequest:
    return EditPlusRequest(**{"prompt": prompt, "image": image, "true_cfg_scale": 1.0, **more})


@pytest.fixture
def recipe(model: ModelFolder) -> EditPlusRecipe:
    return EditPlusRecipe(None, model)


# -- settings ---------------------------------------------------------------------------------------------------------


def bare(model: ModelFolder, tmp_path: Path, table: Any = None) -> ModelFolder:
    folder = tmp_path / "bare"
    shutil.copytree(model.folder / "vae", folder / "vae")
    if table is not None:
        (folder / "qframe.json").write_text(json.dumps({"recipe": table}))
    return ModelFolder.open(folder)


def test_a_published_model_has_the_published_geometries(model: ModelFolder, tmp_path: Path) -> None:
    recipe = EditPlusRecipe(None, bare(model, tmp_path))
    assert recipe.geometry == Geometry(1024 * 1024, 1024 * 1024, 32)
    assert recipe.encoder_geometry == Geometry(384 * 384, 384 * 384, 32)


def test_model_and_configuration_say_otherwise_in_this_order(model: ModelFolder) -> None:
    recipe = EditPlusRecipe(EditPlusSettings(encoder_min_area=48 * 48, multiple=16), model)
    assert recipe.geometry == Geometry(tiny.AREA, tiny.AREA, 16)
    assert recipe.encoder_geometry == Geometry(48 * 48, tiny.ENCODER_AREA, 16)


def test_encoder_areas_that_contradict_each_other_are_named(model: ModelFolder) -> None:
    with pytest.raises(ConfigError, match="min_area 2000000 is larger") as caught:
        EditPlusRecipe(EditPlusSettings(encoder_min_area=2_000_000), model)
    assert "recipe.encoder_min_area and recipe.encoder_max_area" in caught.value.hint


# -- training ---------------------------------------------------------------------------------------------------------


def test_every_reference_goes_into_encoder_and_codec_each_in_its_geometry(recipe: EditPlusRecipe) -> None:
    inputs = recipe.inputs(record(B, C, loss_map=A))
    assert inputs.target.picture is A
    assert [one.picture for one in inputs.references] == [B, C]
    assert {one.geometry for one in (inputs.target, inputs.loss_map, *inputs.references)} == {recipe.geometry}  # type: ignore[union-attr]
    for text, prompt in ((inputs.conditioning, "make it blue"), (inputs.unconditional, " ")):
        assert text is not None
        assert text.prompt == prompt
        assert [one.picture for one in text.pictures] == [B, C]
        assert {one.geometry for one in text.pictures} == {recipe.encoder_geometry}


def test_a_records_request_asks_for_its_target_and_its_size(recipe: EditPlusRecipe) -> None:
    """The last reference would decide the size otherwise, and the result could not be compared with the target."""
    file = io.BytesIO()
    WIDE.save(file, "PNG")
    asked = recipe.request_for(attrs.evolve(record(B, C), target=Picture("wide.png", file.getvalue())))
    assert asked.image == ((B, C),)
    assert asked.prompt == ("make it blue",)
    assert (asked.height, asked.width) == (64, 128)


@pytest.mark.parametrize("count", [0, 9])
def test_records_with_the_wrong_number_of_references_are_named(recipe: EditPlusRecipe, count: int) -> None:
    for ask_it in (recipe.inputs, recipe.request_for):
        with pytest.raises(DataError, match=rf"rows\.jsonl:8: {count} reference pictures, .* takes 1 to 8"):
            ask_it(record(*[B] * count))


# -- requests ---------------------------------------------------------------------------------------------------------


def test_one_set_or_one_per_prompt(recipe: EditPlusRecipe) -> None:
    for image, wanted in (
        (SQUARE, ((SQUARE,),)),
        ("a.png", (("a.png",),)),
        ([SQUARE, WIDE], ((SQUARE, WIDE),)),
        ((SQUARE, WIDE), ((SQUARE, WIDE),)),
        ([[SQUARE], [WIDE, TALL]], ((SQUARE,), (WIDE, TALL))),
    ):
        request = EditPlusRequest(image=image)
        assert request.image == wanted
        assert EditPlusRequest(image=request.image).image == wanted


def as_kind(kind: str, folder: Path) -> Any:
    SQUARE.save(folder / "a.png")
    array = np.asarray(SQUARE)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy()).float() / 255
    return {
        "path": folder / "a.png",
        "string": str(folder / "a.png"),
        "uint8": array,
        "float": array.astype(np.float32) / 255,
        "tensor": tensor,
        "stack": tensor[None],
        "stacks": [tensor[None]],
        "mixed": [folder / "a.png"],
    }[kind]


@pytest.mark.parametrize("kind", ["path", "string", "uint8", "float", "tensor", "stack", "stacks", "mixed"])
def test_a_reference_may_come_in_any_form(recipe: EditPlusRecipe, parts: Parts, tmp_path: Path, kind: str) -> None:
    found, wanted = (plan_request(recipe, ask(image=given), parts) for given in (as_kind(kind, tmp_path), SQUARE))
    assert found.references is not None
    assert wanted.references is not None
    assert torch.equal(found.references.tokens, wanted.references.tokens)


def test_a_stack_of_pictures_is_one_set(recipe: EditPlusRecipe, parts: Parts) -> None:
    stack = np.stack([np.asarray(tiny.picture(seed, 64, 64)) for seed in range(3)])
    plan = plan_request(recipe, ask(image=stack), parts)
    assert plan.references is not None
    assert plan.references.grids == (((1, 6, 6),) * 3,)


BAD = {
    "none": (lambda: ask(image=None), "no image is given"),
    "empty": (lambda: ask(image=[]), "no image is given"),
    "empty set": (lambda: ask(image=[[]]), "no image is given"),
    "one set empty": (lambda: ask(["a", "b"], [[SQUARE], []]), "image: 0 references for prompt 1"),
    "too many": (lambda: ask(image=[SQUARE] * 9), "image: 9 references, expected 1 to 8"),
    "too many in one": (lambda: ask(["a", "b"], [[SQUARE], [SQUARE] * 9]), "9 references for prompt 1"),
    "other count": (lambda: ask(["a", "b", "c"], [[SQUARE], [WIDE]]), r"lists of references \(image\): 2 given for 3"),
    "mixed nesting": (lambda: ask(["a", "b"], [SQUARE, [WIDE]]), "pictures and lists of pictures are mixed"),
    "deep nesting": (lambda: ask(image=[[[SQUARE]]]), "lists within lists within lists"),
    "sizes": (lambda: ask(["a", "b"], [[SQUARE], [WIDE]]), "different sizes"),
    "no picture": (lambda: ask(image=[SQUARE, {"a": 1}]), "image 1: a dict is no picture"),
    "number": (lambda: ask(image=3), "image 0: a int is no picture"),
    "array": (lambda: ask(["a", "b"], [[SQUARE], [SQUARE, np.zeros((4, 4, 7))]]), "image 1 of prompt 1: expected"),
    "missing": (lambda: ask(image="nowhere/a.png"), "nowhere/a.png"),
    "narrow": (lambda: ask(image=[tiny.picture(0, 900, 2), SQUARE]), "too narrow"),
    "height": (lambda: ask(height=100), "height must be a multiple of 16"),
    "prompt": (lambda: ask(prompt=None), "no prompt"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_requests_that_cannot_be_met_are_refused_before_any_model_runs(
    recipe: EditPlusRecipe, parts: Parts, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model ran")

    monkeypatch.setattr(parts.encoder, "encode", refuse)
    monkeypatch.setattr(parts.codec, "encode", refuse)
    request, message = BAD[case]
    with pytest.raises((ConfigError, DataError), match=message):
        plan_request(recipe, request(), parts)


def test_a_picture_cut_short_is_named(recipe: EditPlusRecipe, parts: Parts, tmp_path: Path) -> None:
    SQUARE.save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"half\.png"):
        plan_request(recipe, ask(image=[tmp_path / "whole.png", tmp_path / "half.png"]), parts)


def test_more_references_can_be_allowed(model: ModelFolder, parts: Parts) -> None:
    recipe = EditPlusRecipe(EditPlusSettings(max_references=9), model)
    plan = plan_request(recipe, ask(image=[SQUARE] * 9), parts)
    assert plan.references is not None
    assert len(plan.references.grids[0]) == 9


# -- planning ---------------------------------------------------------------------------------------------------------


def test_references_are_the_codecs_mode_of_each_fitted_picture(recipe: EditPlusRecipe, parts: Parts) -> None:
    plan = plan_request(recipe, ask(image=[WIDE, TALL, SQUARE]), parts)
    assert plan.references is not None
    (found,) = unpack_pictures(plan.references, parts.denoiser_spec.patch)
    for latents, image in zip(found, [WIDE, TALL, SQUARE], strict=True):
        assert torch.equal(latents, parts.codec.encode(to_pixels(fit(image, recipe.geometry))[None])[0])


def test_the_last_reference_decides_the_size(recipe: EditPlusRecipe, parts: Parts) -> None:
    assert plan_request(recipe, ask(image=[WIDE, TALL]), parts).start.grids == (((1, 8, 4),),)
    assert plan_request(recipe, ask(image=[TALL, WIDE]), parts).start.grids == (((1, 4, 8),),)
    assert plan_request(recipe, ask(image=[TALL, WIDE], width=64), parts).start.grids == (((1, 4, 4),),)


def test_encoder_and_negative_prompt_see_all_references_small(recipe: EditPlusRecipe, parts: Parts) -> None:
    request = ask(image=[WIDE, SQUARE], negative_prompt="bad", true_cfg_scale=4.0)
    plan = plan_request(recipe, request, parts)
    shown = [fit(image, recipe.encoder_geometry) for image in (WIDE, SQUARE)]
    assert plan.uncond is not None
    assert torch.equal(plan.cond.embeds, parts.encoder.encode(["blue"], [shown]).embeds)
    assert torch.equal(plan.uncond.embeds, parts.encoder.encode(["bad"], [shown]).embeds)
    assert [[image.size for image in one] for one in recipe.shown(request)] == [[(96, 32), (64, 64)]]


def test_one_set_serves_all_prompts_and_is_encoded_once(
    recipe: EditPlusRecipe, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[torch.Tensor] = []
    encode = parts.codec.encode
    monkeypatch.setattr(parts.codec, "encode", lambda pixels: encoded.append(pixels) or encode(pixels))
    plan = plan_request(recipe, ask(["blue", "red"], [WIDE, SQUARE], num_images_per_prompt=2), parts)
    assert plan.references is not None
    assert plan.references.grids == (((1, 4, 8), (1, 6, 6)),) * 4
    first, *others = plan.references.tokens.chunk(4)
    assert all(torch.equal(first, other) for other in others)
    assert len(encoded) == 2


def test_a_request_splits_by_the_sizes_of_its_last_references(recipe: EditPlusRecipe, parts: Parts) -> None:
    request = ask(["a", "b", "c"], [[SQUARE], [SQUARE, WIDE], [TALL, SQUARE]], num_images_per_prompt=2)
    settled = settle(recipe, request, parts)
    assert [one.places for one in settled] == [(0, 1, 4, 5), (2, 3)]
    assert [one.request.prompt for one in settled] == [("a", "c"), ("b",)]
    assert [[len(shown) for shown in one.shown] for one in settled] == [[1, 2], [2]]
    assert [[len(several) for several in one.references] for one in settled] == [[1, 2], [2]]


def test_a_named_size_needs_no_split(recipe: EditPlusRecipe, parts: Parts) -> None:
    (settled,) = settle(recipe, ask(["a", "b"], [[SQUARE], [SQUARE, WIDE]], height=64, width=64), parts)
    assert settled.places == (0, 1)
    plan = recipe.plan(settled, parts)
    assert plan.references is not None
    assert plan.references.grids == (((1, 6, 6),), ((1, 6, 6), (1, 4, 8)))


def test_another_familys_request_is_a_bug(recipe: EditPlusRecipe, parts: Parts) -> None:
    with pytest.raises(TypeError, match="EditPlusRequest"):
        plan_request(recipe, Request(prompt="a"), parts)


@pytest.mark.parametrize("transform", ["keep-unmasked", "image-to-image"])
def test_transforms_that_start_from_one_picture_are_refused(transform: str) -> None:
    """They would take a set of references for a picture."""
    registry = load_registry()
    transforms = (registry.offer("transform", transform),)
    with pytest.raises(PluginError, match="both take 'image', and read it differently"):
        recipe_class(attrs.evolve(registry.choose("qwen-edit-plus"), transforms=transforms))
