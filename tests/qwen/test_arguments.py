"""What a call takes and gives, held against diffusers' pipelines: names, embeddings, callbacks, state, LoRA scale."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from torch import Tensor

import qframe
from qframe.adapters import LoraLayer, save_lora
from qframe.checkpoint import Checkpoint
from qframe.compose import recipe_class
from qframe.errors import ConfigError
from qframe.pipeline import Pipeline
from qframe.plugins import load_registry
from qframe_shapes import text
from tests.qwen import tiny

FAMILIES = ("qwen-image", "image-to-image", "qwen-inpaint", "qwen-edit", "qwen-edit-inpaint")
"""As the tests below call them: image to image is family qwen-image with a picture."""
UPSTREAM = {
    "qwen-image": QwenImagePipeline,
    "image-to-image": QwenImageImg2ImgPipeline,
    "qwen-inpaint": QwenImageInpaintPipeline,
    "qwen-edit": QwenImageEditPipeline,
    "qwen-edit-inpaint": QwenImageEditInpaintPipeline,
    "qwen-edit-plus": QwenImageEditPlusPipeline,
}
ADDED = {"seed", "progress"}
ADDED_BY = {"qwen-inpaint": {"mask_edges"}, "qwen-edit-inpaint": {"mask_edges"}, "qwen-image": {"image", "strength"}}
STEPS: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
GUIDED: dict[str, Any] = {"negative_prompt": "blurry, bad", "true_cfg_scale": 4.0, **STEPS}
PROMPTS = ["make the circle blue", "a very large red square at the top left of the picture"]
NEGATIVES = ["blurry, bad", " "]

Load = Callable[..., Pipeline]


@pytest.fixture(autouse=True)
def tiny_area(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(tiny.AREA, ratio))
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def family_of(name: str) -> str:
    return "qwen-image" if name == "image-to-image" else name


@pytest.fixture(scope="module")
def load(checkpoint: Checkpoint) -> Load:
    """Loaded families; what a test changes in one it undoes."""
    loaded: dict[Any, Pipeline] = {}

    def found(name: str, *overrides: str, **more: Any) -> Pipeline:
        key = (family_of(name), overrides, repr(more))
        if key not in loaded:
            settings = (
                overrides
                if name in ("qwen-image", "image-to-image")
                else ("encoder.options.positions=upstream", *overrides)
            )
            loaded[key] = qframe.load(
                family_of(name), model=checkpoint.folder, device="cpu", overrides=settings, **more
            )
        return loaded[key]

    return found


@pytest.fixture(scope="module")
def upstream(text_pipeline: Any, edit_pipeline: Any) -> Callable[[str], Any]:
    def found(name: str) -> Any:
        if name == "qwen-edit":
            return edit_pipeline
        pipeline = UPSTREAM[name](**text_pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return found


def given(name: str, count: int = 1) -> dict[str, Any]:
    """What a family needs beside a prompt: pictures of a size that needs no fitting, so that upstream agrees."""
    images = [tiny.picture(seed, 96, 96) for seed in range(count)]
    if name == "qwen-image":
        return {"height": 64, "width": 64}
    arguments: dict[str, Any] = {"image": images if count > 1 else images[0]}
    if name != "qwen-edit":
        arguments |= {"height": 96, "width": 96, "strength": 0.8}
    if "inpaint" in name:
        masks = [tiny.picture(50 + seed, 96, 96).convert("L") for seed in range(count)]
        arguments["mask_image"] = masks if count > 1 else masks[0]
    return arguments


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


# -- names and defaults -----------------------------------------------------------------------------------------------


def own_arguments(name: str) -> Mapping[str, Any]:
    """Name to default of everything that a call of a family takes."""
    registry = load_registry()
    fields = attrs.fields(recipe_class(registry.family(family_of(name)), registry).request_type)
    call = inspect.signature(Pipeline.__call__).parameters.values()
    own = {parameter.name: parameter.default for parameter in call if parameter.kind is parameter.KEYWORD_ONLY}
    return {field.name: field.default for field in fields} | own


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
def test_given_embeddings_equal_diffusers(load: Load, upstream: Callable[[str], Any], name: str) -> None:
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
def test_long_prompts_are_cut_where_diffusers_cuts_them(
    load: Load, upstream: Callable[[str], Any], name: str, limit: int
) -> None:
    arguments = {**given(name), **GUIDED, "num_inference_steps": 2, "prompt": "red blue green " * 300}
    wanted = upstream(name)(**arguments, max_sequence_length=limit, generator=seeded()).images
    close(load(name)(**arguments, max_sequence_length=limit, generator=seeded()).images, wanted)


def test_an_edit_cuts_nothing_as_diffusers(load: Load, upstream: Callable[[str], Any]) -> None:
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


# -- callbacks and state ----------------------------------------------------------------------------------------------


def recorder(seen: list[Any]) -> Callable[..., dict[str, Tensor]]:
    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = (pipe.guidance_scale, pipe.attention_kwargs, pipe.num_timesteps, pipe.interrupt)
        assert torch.equal(pipe.current_timestep, timestep)
        seen.append((step, timestep, state, {name: value.clone() for name, value in tensors.items()}))
        return {}

    return callback


@pytest.mark.parametrize("name", ["qwen-image", "image-to-image", "qwen-inpaint", "qwen-edit"])
def test_a_callback_sees_what_it_sees_in_diffusers(load: Load, upstream: Callable[[str], Any], name: str) -> None:
    """Steps, timesteps to the bit, latents after the blend, embeddings, and the state of the run."""
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED, "attention_kwargs": {"scale": 1.0}}
    arguments["negative_prompt"] = NEGATIVES
    if name == "qwen-inpaint":  # upstream lays masks of several prompts out right only one for all
        arguments["mask_image"] = arguments["mask_image"][0]
    sides: list[list[Any]] = [[], []]
    pipe = load(name)
    for run, seen in zip((pipe, upstream(name)), sides, strict=True):
        run(
            **arguments,
            generator=seeded(),
            callback_on_step_end=recorder(seen),
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    ours, theirs = sides
    assert [seen[0] for seen in ours] == [seen[0] for seen in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine[1], other[1])
        assert mine[2] == other[2]
        assert mine[3].keys() == other[3].keys()
        for tensor in mine[3]:
            close(mine[3][tensor], other[3][tensor])
    assert pipe.current_timestep is None


@pytest.mark.parametrize("name", ["qwen-image", "qwen-inpaint", "qwen-edit"])
@pytest.mark.parametrize("what", ["latents", "prompt_embeds"])
def test_what_a_callback_returns_replaces_what_there_was_as_in_diffusers(
    load: Load, upstream: Callable[[str], Any], name: str, what: str
) -> None:
    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {what: tensors[what].flip(-1)} if step == 1 else {}

    arguments = {"prompt": PROMPTS[0], **given(name), **GUIDED}
    more: dict[str, Any] = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": [what]}
    wanted = upstream(name)(**arguments, generator=seeded(), **more).images
    found = load(name)(**arguments, generator=seeded(), **more).images
    close(found, wanted)
    assert not torch.allclose(found, load(name)(**arguments, generator=seeded()).images, atol=1e-2)  # type: ignore[arg-type]


def test_the_negative_side_and_the_masks_may_be_replaced_too(load: Load) -> None:
    """Both sides swapped for those of another call from the first step on: the rest is that call's."""
    pipe = load("qwen-image")
    arguments: dict[str, Any] = {**given("qwen-image"), **STEPS, "true_cfg_scale": 4.0}
    embeds, mask = pipe.encode_prompt("remove it")
    negative, negative_mask = pipe.encode_prompt("a b c d e f g h")
    middle: list[Tensor] = []

    def swap(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        middle.append(tensors["latents"].clone())
        return {
            "prompt_embeds": embeds,
            "prompt_embeds_mask": mask,
            "negative_prompt_embeds": negative,
            "negative_prompt_embeds_mask": negative_mask,
        }

    def put(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": middle[0]} if step == 0 else {}

    swapped = pipe(
        prompt=PROMPTS[1], negative_prompt=" ", generator=seeded(), callback_on_step_end=swap, **arguments
    ).images
    wanted = pipe(
        prompt="remove it",
        negative_prompt="a b c d e f g h",
        generator=seeded(1),
        callback_on_step_end=put,
        **arguments,
    ).images
    assert torch.equal(swapped, wanted)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "name": (lambda tensors: {"latent": tensors["latents"]}, "returned 'latent'"),
    "latents": (lambda tensors: {"latents": tensors["latents"][:, :2]}, "latents of shape"),
    "embeds": (lambda tensors: {"prompt_embeds": torch.zeros(1, 3, 5)}, "prompt_embeds of shape"),
    "mask": (lambda tensors: {"prompt_embeds": torch.zeros(1, 1, text.WIDTH)}, "prompt_embeds_mask of shape"),
    "negative": (lambda tensors: {"negative_prompt_embeds": torch.zeros(1, 1, text.WIDTH)}, "has no guidance"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_callback_may_not_return_is_named(load: Load, case: str) -> None:
    returned, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        load("qwen-image")(
            prompt="a",
            true_cfg_scale=1.0,
            **given("qwen-image"),
            **STEPS,
            callback_on_step_end=lambda *a: returned(a[3]),
        )


@pytest.mark.parametrize("name", ["qwen-image", "qwen-inpaint"])
def test_an_interrupted_run_ends_as_in_diffusers(load: Load, upstream: Callable[[str], Any], name: str) -> None:
    steps: list[int] = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        pipe._interrupt = step == 1
        return {}

    arguments = {"prompt": "a", **given(name), **GUIDED}
    wanted = upstream(name)(**arguments, generator=seeded(), callback_on_step_end=callback).images
    assert steps == [0, 1]
    pipe = load(name)
    close(pipe(**arguments, generator=seeded(), callback_on_step_end=callback).images, wanted)
    assert steps == [0, 1, 0, 1]
    assert pipe.interrupt
    whole = pipe(**arguments, generator=seeded(), callback_on_step_end=recorder(seen := [])).images
    assert len(seen) == pipe.num_timesteps
    assert not pipe.interrupt
    assert not torch.allclose(whole, wanted, atol=1e-2)  # type: ignore[arg-type]


def test_a_callback_sees_parts_of_several_sizes_in_turn(load: Load) -> None:
    """An interrupt ends the call: what was not begun is as far as it came, at its start."""
    pipe, seen = load("qwen-edit"), []
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128), tiny.picture(2, 96, 96)]
    arguments: dict[str, Any] = {"prompt": ["a", "b", "c"], "image": images, "true_cfg_scale": 1.0, **STEPS, "seed": 0}

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.append((pipe.current_pictures, step, tuple(tensors["latents"].shape)))

    pipe(**arguments, callback_on_step_end=callback)
    parts = [((0, 2), (2, 36, 16)), ((1,), (1, 32, 16))]
    assert seen == [(places, step, shape) for places, shape in parts for step in range(4)]
    assert pipe.current_pictures == ()

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        pipe._interrupt = True

    stopped = pipe(**arguments, callback_on_step_end=stop).images
    start = torch.randn(1, 1, 4, 16, 8, generator=seeded(1))[0]
    close(stopped[1], qframe_tokens(start))


def qframe_tokens(latents: Tensor) -> Tensor:
    from qframe.packing import pack_latents

    return pack_latents(latents, 2)[0]


# -- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
@pytest.mark.parametrize("name", ["qwen-image", "qwen-edit", "qwen-edit-inpaint"])
def test_guidance_in_one_forward_pass_gives_the_same(load: Load, name: str, denoiser: str) -> None:
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED}
    apart, joined = (
        load(name, f"sample.guidance_batching={batching}", components={"denoiser": denoiser})
        for batching in ("apart", "joined")
    )
    passes = count_passes(joined)
    found = joined(**arguments, generator=seeded()).images
    assert len(passes) == joined.num_timesteps
    wanted: Any = apart(**arguments, generator=seeded()).images
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def count_passes(pipe: Pipeline) -> list[int]:
    """Grows by one for every pass through the first block of the network."""
    passes: list[int] = []
    blocks: Any = pipe.parts.denoiser.module.transformer_blocks
    blocks[0].register_forward_hook(lambda *args: passes.append(1))
    return passes


def test_a_scale_for_distilled_checkpoints_is_ignored_with_a_word_by_others(
    load: Load, upstream: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"prompt": "a", **given("qwen-image"), **GUIDED}
    wanted = upstream("qwen-image")(**arguments, guidance_scale=2.0, generator=seeded()).images
    with caplog.at_level(logging.WARNING):
        close(load("qwen-image")(**arguments, guidance_scale=2.0, generator=seeded()).images, wanted)
    assert "not guidance-distilled" in caplog.text


def test_a_distilled_checkpoint_needs_its_scale(load: Load) -> None:
    pipe = load("qwen-image")
    spec = attrs.evolve(pipe.parts.denoiser_spec, guidance=True)
    distilled = Pipeline(pipe.composition, attrs.evolve(pipe.parts, denoiser_spec=spec))
    with pytest.raises(ConfigError, match="guidance_scale is needed"):
        distilled(prompt="a", true_cfg_scale=1.0, **given("qwen-image"), **STEPS)


# -- LoRA scale -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the attention and on the projection of the text."""
    generator = torch.Generator().manual_seed(5)
    file = tmp_path_factory.mktemp("lora") / "a.safetensors"
    layers = {
        name: LoraLayer(torch.randn(2, width, generator=generator), torch.randn(32, 2, generator=generator), 2.0)
        for name, width in (
            ("transformer_blocks.0.attn.to_q", 32),
            ("transformer_blocks.1.attn.to_v", 32),
            ("txt_in", text.WIDTH),
        )
    }
    save_lora(file, layers, metadata={})
    return file


@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_the_scale_of_loras_equals_diffusers(
    checkpoint: Checkpoint, load: Load, lora: Path, denoiser: str, scale: float
) -> None:
    pipeline = tiny.upstream_text_to_image(checkpoint)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    arguments = {"prompt": "a", **given("qwen-image"), **GUIDED}
    pipe = load("qwen-image", components={"denoiser": denoiser}, lora=str(lora))
    whole = pipe(**arguments, generator=seeded()).images
    scaled = {**arguments, "attention_kwargs": {"scale": scale}}
    wanted = pipeline(**scaled, generator=seeded()).images
    found = pipe(**scaled, generator=seeded()).images
    close(found, wanted)
    assert not torch.allclose(found, whole, atol=1e-2)  # type: ignore[arg-type]
    torch.testing.assert_close(pipe(**arguments, generator=seeded()).images, whole)


def test_other_attention_kwargs_go_where_diffusers_sends_them(load: Load, upstream: Callable[[str], Any]) -> None:
    """To the attention, which ignores what it does not know; the other denoiser has nowhere to send them."""
    arguments = {"prompt": "a", **given("qwen-image"), **STEPS, "true_cfg_scale": 1.0, "attention_kwargs": {"a": 1}}
    wanted = upstream("qwen-image")(**arguments, generator=seeded()).images
    close(load("qwen-image")(**arguments, generator=seeded()).images, wanted)
    with pytest.raises(ConfigError, match="takes 'scale' alone, not a"):
        load("qwen-image", components={"denoiser": "qwen-per-sample-rope"})(**arguments)


# -- step caches ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(checkpoint: Checkpoint) -> Pipeline:
    return qframe.load("qwen-edit", model=checkpoint.folder, device="cpu")


def enable(pipe: Pipeline, threshold: float) -> None:
    pipe.parts.denoiser.module.enable_cache(FirstBlockCacheConfig(threshold=threshold))  # type: ignore[operator]


@pytest.mark.parametrize("batching", ["apart", "joined"])
def test_a_step_cache_that_never_skips_changes_nothing(checkpoint: Checkpoint, batching: str) -> None:
    """Pictures of two sizes in one forward call, and both sides of guidance: each has a context of its own."""
    settings = [f"sample.guidance_batching={batching}"]
    pipe = qframe.load("qwen-edit", model=checkpoint.folder, device="cpu", overrides=settings)
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)]
    arguments = {"prompt": PROMPTS, "image": images, "height": 64, "width": 64, **GUIDED}
    wanted = pipe(**arguments, generator=seeded()).images
    enable(pipe, 0.0)
    assert torch.equal(pipe(**arguments, generator=seeded()).images, wanted)  # type: ignore[arg-type]


def test_a_step_cache_skips_blocks_and_keeps_nothing_for_the_next_run(cached: Pipeline) -> None:
    enable(cached, 1e6)  # after the first step only the first block runs
    passes: list[int] = []
    blocks: Any = cached.parts.denoiser.module.transformer_blocks
    runs = blocks[1]._diffusers_hook.hooks
    assert runs
    arguments = {"prompt": PROMPTS[0], **given("qwen-edit"), **GUIDED}
    blocks[1].attn.register_forward_hook(lambda *args: passes.append(1))
    first = cached(**arguments, generator=seeded()).images
    assert len(passes) == 2  # the first step of each side
    other = cached(**{**arguments, "prompt": PROMPTS[1]}, generator=seeded(1)).images
    assert torch.equal(cached(**arguments, generator=seeded()).images, first)  # type: ignore[arg-type]
    assert not torch.equal(other, first)  # type: ignore[arg-type]


def test_a_step_cache_equals_diffusers_with_the_same(checkpoint: Checkpoint, load: Load, cached: Pipeline) -> None:
    pipeline = tiny.upstream_text_to_image(checkpoint)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=2.0))
    pipe = qframe.load("qwen-image", model=checkpoint.folder, device="cpu")
    enable(pipe, 2.0)
    arguments = {"prompt": "a", **given("qwen-image"), **GUIDED, "num_inference_steps": 8}
    wanted = pipeline(**arguments, generator=seeded()).images
    close(pipe(**arguments, generator=seeded()).images, wanted)
    assert not torch.allclose(wanted, load("qwen-image")(**arguments, generator=seeded()).images, atol=1e-3)  # type: ignore[arg-type]


def test_a_run_that_fails_leaves_nothing_in_the_step_cache(cached: Pipeline) -> None:
    enable(cached, 1e6)
    arguments = {"prompt": PROMPTS[0], **given("qwen-edit"), **GUIDED}
    wanted = cached(**arguments, generator=seeded()).images

    def fail(*args: Any) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached(**{**arguments, "prompt": "something else"}, generator=seeded(2), callback_on_step_end=fail)
    assert torch.equal(cached(**arguments, generator=seeded()).images, wanted)  # type: ignore[arg-type]


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_cache", [False, True])
def test_nothing_of_a_run_stays_referenced(
    checkpoint: Checkpoint, step_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = qframe.load("qwen-edit", model=checkpoint.folder, device="cpu")
    if step_cache:
        enable(pipe, 0.05)
    kept: list[weakref.ref[Any]] = []
    plan_of = pipe.recipe.plan

    def planned(*args: Any) -> Any:
        plan = plan_of(*args)
        values = (plan, plan.cond, plan.uncond, plan.references, plan.start.tokens, plan.cond.embeds)
        kept.extend(weakref.ref(value) for value in (*values, plan.references.tokens))
        return plan

    monkeypatch.setattr(pipe.recipe, "plan", planned)

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.extend(weakref.ref(tensor) for tensor in tensors.values())
        return dict(tensors)

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    images = pipe(
        prompt=PROMPTS[0],
        **given("qwen-edit"),
        **{**GUIDED, "output_type": "np"},
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    ).images
    assert len(kept) > 10
    assert [type(found()) for found in kept if found() is not None] == []
    assert np.isfinite(images).all()  # type: ignore[arg-type]


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
        pipe(**arguments, latents=latents, generator=seeded()).images for latents in (dense, qframe_tokens(dense)[None])
    ]
    assert torch.equal(*found)  # type: ignore[arg-type]
    assert not torch.allclose(found[0], pipe(**arguments, generator=seeded(1)).images, atol=1e-2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen-image", "qwen-edit"])
def test_latents_and_sigmas_equal_diffusers(load: Load, upstream: Callable[[str], Any], name: str) -> None:
    side = 8 if name == "qwen-image" else 12
    latents = qframe_tokens(torch.randn(1, 4, side, side, generator=seeded()))[None]
    arguments = {"prompt": "a", **given(name), **GUIDED, "latents": latents, "sigmas": [1.0, 0.7, 0.2]}
    wanted = upstream(name)(**arguments).images
    close(load(name)(**arguments).images, wanted)


@pytest.mark.parametrize("name", ["image-to-image", "qwen-edit"])
def test_one_generator_per_picture_equals_diffusers(load: Load, upstream: Callable[[str], Any], name: str) -> None:
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED, "negative_prompt": NEGATIVES}
    wanted = upstream(name)(**arguments, generator=[seeded(1), seeded(2)]).images
    close(load(name)(**arguments, generator=[seeded(1), seeded(2)]).images, wanted)
