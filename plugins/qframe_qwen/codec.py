"""The codec (VAE) of Qwen-Image: diffusers' autoencoder for video, used for still pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qframe.files.model_folder import ModelFolder
from qframe.interfaces import CodecSpec, LatentCodec, require_latents
from qframe_qwen.loading import component_config, load_weights, outline_of, refused_by_library, stored_dtype
from qframe_qwen.named_tensors import not_in_file
from qframe_qwen.options import QwenCodecOptions
from qframe_qwen.spaces import PUBLISHED_MEAN, latent_space

_CLASS = "AutoencoderKLQwenImage"
_FOLDER = "vae"


class QwenCodec(LatentCodec):
    """The codec that wraps diffusers' AutoencoderKLQwenImage, a VAE for video: every picture is a video of one frame.

    Attributes:
        vae: Diffusers' network.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.vae
        return network

    @property
    def decoder(self) -> nn.Module:
        decoder: nn.Module = self.vae.decoder
        return decoder

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> CodecSpec:
        config = component_config(model, _FOLDER, _CLASS)
        with refused_by_library(model, f"{_FOLDER}/config.json"):
            return CodecSpec(
                latent_space=latent_space(config),
                channels=int(config.get("z_dim", len(PUBLISHED_MEAN))),
                compression=2 ** len(config.get("temperal_downsample", (False, True, True))),
                pixel_channels=int(config.get("input_channels", 3)),
            )

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        from diffusers import AutoencoderKLQwenImage

        component_config(model, _FOLDER, _CLASS)
        vae = load_weights(AutoencoderKLQwenImage, model, _FOLDER, device=device, dtype=dtype)
        return cls(_with_options(vae, options))

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self:
        from diffusers import AutoencoderKLQwenImage

        component_config(model, _FOLDER, _CLASS)
        vae = outline_of(AutoencoderKLQwenImage, model, _FOLDER, dtype)
        return cls(_with_options(vae, options))

    @classmethod
    def not_in_file(cls, file: Path) -> str | None:
        return not_in_file(file, _FOLDER)

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        return stored_dtype(model, _FOLDER)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        weights = {"weights": model.digest(_FOLDER)}
        return {**weights, "tiling": "true"} if options is not None and options.tiling else weights

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        frames = pixels[:, :, None].to(self.execution_device, self.vae.dtype)  # [B, C, 1, H, W]
        posterior = self.vae.encode(frames).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        mean, std = self._normalisation(latents)
        # Equal to diffusers to the bit: its edit pipelines, which take the mode, divide; those that sample multiply.
        normalised: Tensor = (latents - mean) / std if generator is None else (latents - mean) * (1.0 / std)
        return normalised[:, :, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = require_latents(latents, self.vae.config.z_dim)
        frames = latents[:, :, None].to(self.execution_device, self.vae.dtype)  # [B, Z, 1, h, w]
        mean, std = self._normalisation(frames)
        pixels: Tensor = self.vae.decode(frames / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]  # as diffusers
        return pixels.clamp(-1, 1)

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents' channels, each [1, Z, 1, 1, 1]."""
        config = self.vae.config
        return (
            torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1).to(latents),
            torch.tensor(config.latents_std).view(1, -1, 1, 1, 1).to(latents),
        )


def _with_options(vae: Any, options: Any) -> Any:
    """Switch on what the options of the codec ask for, and return the network."""
    options = options or QwenCodecOptions()
    if options.tiling:
        vae.enable_tiling()
    if options.slicing:
        vae.enable_slicing()
    return vae
