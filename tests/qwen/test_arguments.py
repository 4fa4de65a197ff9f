"""What a call takes, held against diffusers' pipelines: names, embeddings, prompts and pictures in every form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import qframe
from qframe.compose import recipe_class
from qframe.errors import ConfigError
from qframe.plugins.registry import load_registry
from qframe.sample.pipeline import Pipeline
from qframe_shapes import text
from tests.parity import seeded
from tests.qwen import tiny
from tests.qwen.calls import (
    FAMILIES,
    GUIDED,
    NEGATIVES,
    PROMPTS,
    STEPS,
    UPSTREAM,
    Load,
    Upstream,
    as_tokens,
    close,
    family_of,
    given,
)

ADDED = {"seed", "progress", "as_input"}
ADDED_BY = {"qwen-inpaint": {"mask_edges"}, "qwen-edit-inpaint": {"mask_edges"}, "qwen-image": {"image", "strength"}}


# -- names and defaults -----------------------------------------------------------------------------------------------


def own_arguments(name: str) -> Mapping[str, Any]:
    """Name to default of everything that a call of a family takes."""
    registry = load_registry()
    recipe = recipe_class(registry.choose(family_of(name)))
    request = recipe.sampling.fill(recipe.request_type())
    call = inspect.signature(Pipeline.__call__).parameters.values()
    own = {parameter.name: parameter.default for parameter in call if parameter.kind is parameter.KEYWORD_ONLY}
    return {field.name: getattr(request, field.name) for field in attrs.fields(recipe.request_type)} | own


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_call_takes_what_the_diffusers_pipeline_takes(name: str) -> None:
    """Every name and default; what there is beside is listed in docs/reference/pipeline.md."""
    wanted = {p.name: p.default for p in inspect.signature(UPSTREAM[name].__call__).parameters.values()}
    del wanted["self"]
    found = own_arguments(name)
    assert set(found) - set(wanted) - ADDED == ADDED_BY.get(name, set())
    for argument, default in wanted.items():
        if (name, argument) == ("image-to-image", "strength"):  # one family: without a picture there is none
            assert found[argument] is None
        elif argument == "callback_on_step_end_tensor_inputs":
            assert list(found[argument]) == default
        else:
            assert found[argument] == default, argument


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_first_arguments_go_by_position_as_in_diffusers(name: str) -> None:
    """As many as diffusers' pipelines agree on; the recipe says which."""
    registry = load_registry()
    found = recipe_class(registry.choose(family_of(name))).positional
    wanted = [argument for argument in inspect.signature(UPSTREAM[name].__call__).parameters if argument != "self"]
    assert found == tuple(wanted[: len(found)])
    assert "prompt" in found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_by_position_is_the_call_by_name(load: Load, name: str) -> None:
    pipe, arguments = load(name), {"prompt": "a", **given(name), **GUIDED, "num_inference_steps": 2}
    wanted = pipe(**arguments, generator=seeded()).images
    positional = [arguments.pop(argument) for argument in pipe.recipe.positional]
    assert torch.equal(pipe(*positional, **arguments, generator=seeded()).images, wanted)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"4 arguments by position, family '{family_of(name)}' takes"):
        pipe(*positional, *([None] * (4 - len(positional))), **arguments)
    with pytest.raises(ConfigError, match="prompt: given by position and by name"):
        pipe(*positional, **arguments, prompt="a")


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_page_lists_what_is_added(name: str) -> None:
    page = (Path(qframe.__file__).parents[1] / "docs" / "reference" / "pipeline.md").read_text(encoding="utf-8")
    assert all(f"`{argument}`" in page for argument in own_arguments(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tuple_is_returned_instead_of_an_object(load: Load, name: str) -> None:
    pipe, arguments = load(name), {"prompt": "a", **given(name), **STEPS, "num_inference_steps": 2}
    (images,) = pipe(**arguments, generator=seeded(), return_dict=False)
    assert torch.equal(images, pipe(**arguments, generator=seeded()).images)  # type: ignore[arg-type]


# -- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_embeddings_equal_live_ones_to_the_bit(load: Load, name: str) -> None:
    """Both sides, prompts of different lengths, several pictures per prompt; an edit still takes its pictures."""
    pipe, arguments = load(name), {**given(name, 2), **GUIDED, "num_images_per_prompt": 2}
    del arguments["negative_prompt"]
    shown = {"image": arguments["image"]} if "edit" in name else {}
    embeds, mask = pipe.encode_prompt(PROMPTS, **shown)
    negative, negative_mask = pipe.encode_prompt(["blurry", "a b c d e f g"], **shown)
    assert embeds.shape[:2] == mask.shape
    live = pipe(prompt=PROMPTS, negative_prompt=["blurry", "a b c d e f g"], generator=seeded(), **arguments).images
    cached = pipe(
        prompt_embeds=embeds,
        prompt_embeds_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_embeds_mask=negative_mask,
        generator=seeded(),
        **arguments,
    ).images
    assert torch.equal(cached, live)  # type: ignore[arg-type]


def test_embeddings_of_a_crop_are_those_of_the_part_that_the_edit_sees(load: Load) -> None:
    pipe = load("qwen-edit-inpaint")
    mask = Image.new("L", (96, 96))
    mask.paste(255, (10, 20, 40, 50))
    arguments = {"image": tiny.picture(0, 96, 96), "mask_image": mask, "padding_mask_crop": 8}
    embeds, embeds_mask = pipe.encode_prompt("make it blue", **arguments)
    more: dict[str, Any] = {**arguments, **STEPS, "true_cfg_scale": 1.0}
    live = pipe(prompt="make it blue", generator=seeded(), **more).images
    cached = pipe(prompt_embeds=embeds, prompt_embeds_mask=embeds_mask, generator=seeded(), **more).images
    assert torch.equal(cached, live)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen-image", "image-to-image", "qwen-inpaint", "qwen-edit"])
def test_given_embeddings_equal_diffusers(load: Load, upstream: Upstream, name: str) -> None:
    """What our encoder gives, and random numbers with padding between, go the same way upstream."""
    pipe, arguments = load(name), {**given(name, 2), **STEPS, "true_cfg_scale": 4.0}
    generator = seeded(3)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    width = pipe.parts.denoiser_spec.text_width
    sides = {
        f"{side}prompt_embeds{part}": value
        for side in ("", "negative_")
        for part, value in (("", torch.randn(2, 7, width, generator=generator)), ("_mask", mask))
    }
    wanted = upstream(name)(**sides, **arguments, generator=seeded()).images
    close(pipe(**sides, **arguments, generator=seeded()).images, wanted)


@pytest.mark.parametrize("name", ["qwen-image", "qwen-inpaint"])
@pytest.mark.parametrize("limit", [3, 512, 1024])
def test_long_prompts_are_cut_where_diffusers_cuts_them(load: Load, upstream: Upstream, name: str, limit: int) -> None:
    arguments = {**given(name), **GUIDED, "num_inference_steps": 2, "prompt": "red blue green " * 300}
    wanted = upstream(name)(**arguments, max_sequence_length=limit, generator=seeded()).images
    close(load(name)(**arguments, max_sequence_length=limit, generator=seeded()).images, wanted)


def test_an_edit_cuts_nothing_as_diffusers(load: Load, upstream: Upstream) -> None:
    arguments = {**given("qwen-edit"), **GUIDED, "num_inference_steps": 2, "prompt": "make it red"}
    for limit in (3, 1024):
        wanted = upstream("qwen-edit")(**arguments, max_sequence_length=limit, generator=seeded()).images
        close(load("qwen-edit")(**arguments, max_sequence_length=limit, generator=seeded()).images, wanted)


EMBEDS = torch.zeros(1, 3, text.WIDTH)
ONES = torch.ones(1, 3)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"prompt": "a", "prompt_embeds": EMBEDS, "prompt_embeds_mask": ONES}, "both prompt and prompt_embeds"),
    "no mask": ({"prompt_embeds": EMBEDS}, "prompt_embeds is given without prompt_embeds_mask"),
    "mask alone": ({"prompt": "a", "prompt_embeds_mask": ONES}, "prompt_embeds_mask is given without prompt_embeds"),
    "both negative": (
        {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": EMBEDS, "negative_prompt_embeds_mask": ONES},
        "both negative_prompt and negative_prompt_embeds",
    ),
    "mask shape": ({"prompt_embeds": EMBEDS, "prompt_embeds_mask": torch.ones(1, 4)}, r"expected \[B, T, D\]"),
    "all masked": ({"prompt_embeds": EMBEDS, "prompt_embeds_mask": torch.zeros(1, 3)}, "row 0 keeps no token"),
    "width": ({"prompt_embeds": EMBEDS[..., :5], "prompt_embeds_mask": ONES}, "5 wide, the denoiser wants"),
    "no tensor": ({"prompt_embeds": [[[0.0]]], "prompt_embeds_mask": [[1]]}, "must be tensors, got list, list"),
    "no mapping": ({"prompt": "a", "attention_kwargs": 0.5}, "attention_kwargs must be a mapping, got float"),
    "scale": ({"prompt": "a", "attention_kwargs": {"scale": float("nan")}}, "scale must be a finite number"),
    "distilled": ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
    "nothing": ({}, "no prompt is given"),
    "longest": ({"prompt": "a", "max_sequence_length": 1025}, "between 1 and 1024, got 1025"),
    "shortest": ({"prompt": "a", "max_sequence_length": 0}, "between 1 and 1024, got 0"),
    "callback tensors": ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["latent"]}, "there is no 'latent'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["qwen-image", "qwen-edit"])
def test_calls_that_cannot_be_met_are_refused_before_any_model_runs(
    load: Load, name: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load(name)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model ran")

    for part in (pipe.parts.encoder, pipe.parts.codec):
        monkeypatch.setattr(part, "encode", refuse)
    arguments, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        pipe(**arguments, **given(name))


def test_an_edit_with_embeddings_still_needs_its_picture(load: Load) -> None:
    width = load("qwen-edit").parts.denoiser_spec.text_width
    with pytest.raises(ConfigError, match="no image is given"):
        load("qwen-edit")(prompt_embeds=torch.zeros(1, 3, width), prompt_embeds_mask=ONES)


# -- several prompts, several pictures, any form ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_picture_of_several_prompts_is_what_it_is_alone(load: Load, name: str) -> None:
    """Prompt, negative prompt, picture, mask and noise stay together; picture i of seed s is picture 0 of s + i."""
    pipe, together = load(name), given(name, 2)
    arguments = {**GUIDED, "num_inference_steps": 3}
    found = pipe(
        **{**arguments, "negative_prompt": NEGATIVES}, **together, prompt=PROMPTS, num_images_per_prompt=2, seed=5
    ).images
    for place in range(4):
        prompt = place // 2
        own = {key: value[prompt] if isinstance(value, list) else value for key, value in together.items()}
        alone = pipe(
            **{**arguments, "negative_prompt": NEGATIVES[prompt]}, **own, prompt=PROMPTS[prompt], seed=5 + place
        ).images
        close(found[place], alone[0])


FORMS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "path": lambda image, folder: _saved(image, folder),
    "text": lambda image, folder: str(_saved(image, folder)),
    "array": lambda image, folder: np.asarray(image),
    "float": lambda image, folder: np.asarray(image).astype(np.float32) / 255,
    "tensor": lambda image, folder: _tensor(image),
}


def _saved(image: Image.Image, folder: Path) -> Path:
    file = folder / f"{image.mode}.png"
    image.save(file)
    return file


def _tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image).astype(np.float32) / 255
    return torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES[1:])
def test_pictures_and_masks_may_come_in_any_form(load: Load, name: str, form: str, tmp_path: Path) -> None:
    pipe, arguments = load(name), given(name)
    more: dict[str, Any] = {"prompt": "a", "true_cfg_scale": 1.0, **STEPS, "num_inference_steps": 2}
    wanted = pipe(**arguments, **more, generator=seeded()).images
    changed = {
        key: FORMS[form](value, tmp_path) if isinstance(value, Image.Image) else value
        for key, value in arguments.items()
    }
    assert torch.equal(pipe(**changed, **more, generator=seeded()).images, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_mean_the_same_dense_and_as_tokens(load: Load, name: str) -> None:
    pipe, side = load(name), 8 if name == "qwen-image" else 12
    dense = torch.randn(1, 4, side, side, generator=seeded())
    arguments: dict[str, Any] = {"prompt": "a", "true_cfg_scale": 1.0, **given(name), **STEPS}
    found = [
        pipe(**arguments, latents=latents, generator=seeded()).images for latents in (dense, as_tokens(dense)[None])
    ]
    assert torch.equal(*found)  # type: ignore[arg-type]
    assert not torch.allclose(found[0], pipe(**arguments, generator=seeded(1)).images, atol=1e-2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen-image", "qwen-edit"])
def test_latents_and_sigmas_equal_diffusers(load: Load, upstream: Upstream, name: str) -> None:
    side = 8 if name == "qwen-image" else 12
    latents = as_tokens(torch.randn(1, 4, side, side, generator=seeded()))[None]
    arguments = {"prompt": "a", **given(name), **GUIDED, "latents": latents, "sigmas": [1.0, 0.7, 0.2]}
    wanted = upstream(name)(**arguments).images
    close(load(name)(**arguments).images, wanted)


@pytest.mark.parametrize("name", ["image-to-image", "qwen-edit"])
def test_one_generator_per_picture_equals_diffusers(load: Load, upstream: Upstream, name: str) -> None:
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED, "negative_prompt": NEGATIVES}
    wanted = upstream(name)(**arguments, generator=[seeded(1), seeded(2)]).images
    close(load(name)(**arguments, generator=[seeded(1), seeded(2)]).images, wanted)
