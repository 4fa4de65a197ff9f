"""The components of `tests.gpu.stand_ins`: random conditioning, random latents, and a transformer of random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from qframe.files.model_folder import ModelFolder
from qframe.interfaces import CodecSpec, Conditioning, Encoder, EncoderSpec, LatentCodec, TokenCounter
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.spaces import TEXT_SPACE


class RandomEncoder(Encoder):
    """The encoder that gives as many random tokens for every prompt as its options say."""

    def __init__(self, options: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.options = options
        self.placed_on = device
        self.dtype = dtype

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> EncoderSpec:
        return EncoderSpec(text_space=TEXT_SPACE, width=options.width, pictures=True)

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(options, device, dtype)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
        return {"random": str(options)}

    @classmethod
    def token_counter(cls, model: ModelFolder, options: Any, *, cut: bool = True) -> TokenCounter:
        return lambda prompt, sizes: int(options.tokens)

    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
    ) -> Conditioning:
        count = self.options.tokens
        numbers = torch.randn(len(prompts) * count, self.options.width, device=self.placed_on, dtype=self.dtype)
        return Conditioning(numbers, (count,) * len(prompts))


class RandomCodec(LatentCodec):
    """The codec whose latents are random numbers, and whose pixels are grey."""

    def __init__(self, device: torch.device) -> None:
        self.placed_on = device

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> CodecSpec:
        return CodecSpec(latent_space="qwen-image", channels=16, compression=8)

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(device)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
        return {"random": "latents"}

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        count, _, height, width = pixels.shape
        return torch.randn(count, 16, height // 8, width // 8, device=self.placed_on)

    def decode(self, latents: Tensor) -> Tensor:
        count, _, height, width = latents.shape
        return torch.zeros(count, 3, 8 * height, 8 * width, device=latents.device)


class RandomDenoiser(StockDenoiser):
    """The denoiser `qwen-image` with weights as torch draws them for new layers, made on the device."""

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(options.device):
                network = cls.network_class().from_config(model.config("transformer"))
        finally:
            torch.set_default_dtype(before)
        return cls(network.eval().requires_grad_(False))

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"fingerprint": "random"}
