"""How the forward passes of a call run: guidance apart or joined, scales, step caches; held against diffusers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import FirstBlockCacheConfig

import qframe
from qframe.adapters import LoraLayer, save_lora
from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.sample.pipeline import Pipeline
from qframe_shapes import text
from tests.parity import seeded
from tests.qwen import tiny
from tests.qwen.calls import (
    GUIDED,
    PROMPTS,
    STEPS,
    Load,
    Upstream,
    close,
    enable_step_cache,
    given,
)

# -- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
@pytest.mark.parametrize("name", ["qwen-image", "qwen-edit", "qwen-edit-inpaint"])
def test_guidance_in_one_forward_pass_gives_the_same(load: Load, name: str, denoiser: str) -> None:
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED}
    apart, joined = (
        load(name, f"sample.guidance_batching={batching}", components={"denoiser": denoiser})
        for batching in ("apart", "joined")
    )
    passes: list[int] = []
    blocks: Any = joined.parts.denoiser.module.transformer_blocks
    with blocks[0].register_forward_hook(lambda *args: passes.append(1)):
        found = joined(**arguments, generator=seeded()).images
    assert len(passes) == joined.num_timesteps
    wanted: Any = apart(**arguments, generator=seeded()).images
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_scale_for_distilled_models_is_ignored_with_a_word_by_others(
    load: Load, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"prompt": "a", **given("qwen-image"), **GUIDED}
    wanted = upstream("qwen-image")(**arguments, guidance_scale=2.0, generator=seeded()).images
    with caplog.at_level(logging.WARNING):
        close(load("qwen-image")(**arguments, guidance_scale=2.0, generator=seeded()).images, wanted)
    assert "not guidance-distilled" in caplog.text


def test_a_distilled_model_needs_its_scale(load: Load) -> None:
    pipe = load("qwen-image")
    spec = attrs.evolve(pipe.parts.denoiser_spec, guidance=True)
    distilled = Pipeline(pipe.composition, attrs.evolve(pipe.parts, denoiser_spec=spec))
    with pytest.raises(ConfigError, match="guidance_scale is needed"):
        distilled(prompt="a", true_cfg_scale=1.0, **given("qwen-image"), **STEPS)


# -- scale of LoRAs ---------------------------------------------------------------------------------------------------


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
    model: ModelFolder, load: Load, lora: Path, denoiser: str, scale: float
) -> None:
    pipeline = tiny.upstream_text_to_image(model)
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


def test_other_attention_kwargs_go_where_diffusers_sends_them(load: Load, upstream: Upstream) -> None:
    """To the attention, which ignores what it does not know; the other denoiser has nowhere to send them."""
    arguments = {"prompt": "a", **given("qwen-image"), **STEPS, "true_cfg_scale": 1.0, "attention_kwargs": {"a": 1}}
    wanted = upstream("qwen-image")(**arguments, generator=seeded()).images
    close(load("qwen-image")(**arguments, generator=seeded()).images, wanted)
    with pytest.raises(ConfigError, match="takes 'scale' alone, not a"):
        load("qwen-image", components={"denoiser": "qwen-per-sample-rope"})(**arguments)


# -- step caches ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(model: ModelFolder) -> Pipeline:
    return qframe.load("qwen-edit", model=model.folder, device="cpu")


@pytest.mark.parametrize("batching", ["apart", "joined"])
def test_a_step_cache_that_never_skips_changes_nothing(model: ModelFolder, batching: str) -> None:
    """Pictures of two sizes in one forward call, and both sides of guidance: each has a context of its own."""
    settings = [f"sample.guidance_batching={batching}"]
    pipe = qframe.load("qwen-edit", model=model.folder, device="cpu", overrides=settings)
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)]
    arguments = {"prompt": PROMPTS, "image": images, "height": 64, "width": 64, **GUIDED}
    wanted = pipe(**arguments, generator=seeded()).images
    enable_step_cache(pipe, 0.0)
    assert torch.equal(pipe(**arguments, generator=seeded()).images, wanted)  # type: ignore[arg-type]


def test_a_step_cache_skips_blocks_and_keeps_nothing_for_the_next_run(cached: Pipeline) -> None:
    enable_step_cache(cached, 1e6)  # after the first step only the first block runs
    passes: list[int] = []
    blocks: Any = cached.parts.denoiser.module.transformer_blocks
    arguments = {"prompt": PROMPTS[0], **given("qwen-edit"), **GUIDED}
    blocks[1].attn.register_forward_hook(lambda *args: passes.append(1))
    first = cached(**arguments, generator=seeded()).images
    assert len(passes) == 2  # the first step of each side
    other = cached(**{**arguments, "prompt": PROMPTS[1]}, generator=seeded(1)).images
    assert torch.equal(cached(**arguments, generator=seeded()).images, first)  # type: ignore[arg-type]
    assert not torch.equal(other, first)  # type: ignore[arg-type]


def test_a_step_cache_equals_diffusers_with_the_same(model: ModelFolder, load: Load, cached: Pipeline) -> None:
    pipeline = tiny.upstream_text_to_image(model)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=2.0))
    pipe = qframe.load("qwen-image", model=model.folder, device="cpu")
    enable_step_cache(pipe, 2.0)
    arguments = {"prompt": "a", **given("qwen-image"), **GUIDED, "num_inference_steps": 8}
    wanted = pipeline(**arguments, generator=seeded()).images
    close(pipe(**arguments, generator=seeded()).images, wanted)
    assert not torch.allclose(wanted, load("qwen-image")(**arguments, generator=seeded()).images, atol=1e-3)  # type: ignore[arg-type]


def test_a_run_that_fails_leaves_nothing_in_the_step_cache(cached: Pipeline) -> None:
    enable_step_cache(cached, 1e6)
    arguments = {"prompt": PROMPTS[0], **given("qwen-edit"), **GUIDED}
    wanted = cached(**arguments, generator=seeded()).images

    def fail(*args: Any) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached(**{**arguments, "prompt": "something else"}, generator=seeded(2), callback_on_step_end=fail)
    assert torch.equal(cached(**arguments, generator=seeded()).images, wanted)  # type: ignore[arg-type]
