"""Options of codec and denoiser: tiles, slices, attention kernels, compilation. Each changes cost, not results."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Denoiser, PackedSequence
from qframe_qwen.codec import QwenCodec
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.options import QwenCodecOptions, QwenDenoiserOptions
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from qframe_qwen_per_sample_rope.options import PerSampleRopeOptions

HERE = {"device": torch.device("cpu"), "dtype": torch.float32}


def codec(model: ModelFolder, **options: bool) -> QwenCodec:
    return QwenCodec.load(model, QwenCodecOptions(**options), **HERE)


def waves(batch: int, height: int, width: int) -> Tensor:
    """Smooth pixels [B, 3, H, W]: what a codec is made for."""
    y, x = torch.linspace(0, 5, height)[:, None], torch.linspace(0, 5, width)[None]
    return torch.stack(
        [torch.stack([torch.sin(x * (b + 1) + c) * torch.cos(y) for c in range(3)]) for b in range(batch)]
    )


def test_slices_give_what_a_batch_gives(model: ModelFolder) -> None:
    pixels = waves(3, 32, 48)
    plain, sliced = codec(model), codec(model, slicing=True)
    calls: list[int] = []
    encode = sliced.vae._encode
    sliced.vae._encode = lambda x: calls.append(len(x)) or encode(x)
    latents = plain.encode(pixels)
    torch.testing.assert_close(sliced.encode(pixels), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sliced.decode(latents), plain.decode(latents), rtol=1e-5, atol=1e-5)
    assert calls == [1, 1, 1]


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the largest tensor that is made inside: what tiles are to bound."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_tiles_need_less_memory_and_change_little(model: ModelFolder) -> None:
    pixels = waves(1, 320, 448)
    plain, tiled = codec(model), codec(model, tiling=True)
    with Largest() as whole:
        latents = plain.encode(pixels)
        decoded = plain.decode(latents)
    with Largest() as parts:
        latents_of_tiles = tiled.encode(pixels)
        decoded_of_tiles = tiled.decode(latents)
    assert latents_of_tiles.shape == latents.shape
    assert parts.bytes < 0.6 * whole.bytes
    assert 0 < (latents_of_tiles - latents).abs().mean() < 0.1 * latents.std()
    assert 0 < (decoded_of_tiles - decoded).abs().mean() < 0.1 * decoded.std()


def test_pictures_below_a_tile_are_coded_as_ever(model: ModelFolder) -> None:
    pixels = waves(1, 64, 96)
    assert torch.equal(codec(model, tiling=True).encode(pixels), codec(model).encode(pixels))


def test_tiles_are_an_ingredient_and_slices_are_not(model: ModelFolder) -> None:
    options = [None, QwenCodecOptions(), QwenCodecOptions(slicing=True), QwenCodecOptions(tiling=True)]
    found = [QwenCodec.ingredients(model, one) for one in options]
    assert found[0] == found[1] == found[2]
    assert found[3] != found[0]


def velocity(denoiser: Denoiser) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    channels, width = denoiser.module.config.in_channels, denoiser.module.config.joint_attention_dim
    x = PackedSequence(torch.randn(12, channels, generator=generator), (((1, 2, 3),),) * 2)
    cond = Conditioning(torch.randn(10, width, generator=generator), (5, 5))
    return denoiser.velocity(x, torch.tensor([0.3, 0.9]), cond)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """torch.compile without its code generator, which would take minutes; yields the blocks that were compiled."""
    compiled: list[str] = []

    def compile_eagerly(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    yield compiled
    torch.compiler.reset()


@torch.no_grad()
def test_compiled_blocks_give_what_plain_ones_give(model: ModelFolder, eager: list[str]) -> None:
    for cls, options, block in (
        (StockDenoiser, QwenDenoiserOptions(compile=True), "QwenImageTransformerBlock"),
        (PerSampleRopeDenoiser, PerSampleRopeOptions(compile=True), "PerSampleRopeBlock"),
    ):
        plain = velocity(cls.load(model, None, **HERE))
        assert eager == []
        compiled = velocity(cls.load(model, options, **HERE))
        assert eager == [block] * 2
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
        eager.clear()


@torch.no_grad()
def test_an_attention_kernel_is_chosen_for_one_network_alone(model: ModelFolder) -> None:
    before = _AttentionBackendRegistry.get_active_backend()
    plain = StockDenoiser.load(model, None, **HERE)
    chosen = StockDenoiser.load(model, QwenDenoiserOptions(attention_backend="_native_math"), **HERE)
    assert _AttentionBackendRegistry.get_active_backend() == before
    processors = {part.processor._attention_backend for part in chosen.module.modules() if hasattr(part, "processor")}
    assert {processor.value for processor in processors} == {"_native_math"}
    assert {p.processor._attention_backend for p in plain.module.modules() if hasattr(p, "processor")} == {None}
    torch.testing.assert_close(velocity(chosen), velocity(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "'fast' cannot be used here: .*must be one of"),
        ("flash_hub", "is code that diffusers downloads and runs"),
        pytest.param(
            "flash",
            "'flash' cannot be used here",
            marks=pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed"),
        ),
    ],
)
def test_a_kernel_that_is_not_there_is_refused(model: ModelFolder, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StockDenoiser.load(model, QwenDenoiserOptions(attention_backend=name), **HERE)
