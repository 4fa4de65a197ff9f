"""The contract of a latent codec: it encodes pixels into latents, and decodes latents into pixels."""

from __future__ import annotations

from abc import abstractmethod

import attrs
import torch
from torch import Tensor, nn

from qframe.errors import ConfigError
from qframe.interfaces.loadable import Loadable


@attrs.frozen(kw_only=True)
class CodecSpec:
    """The properties of a codec that are known before its weights are loaded.

    Attributes:
        latent_space: The name of the latent space. Codec and denoiser fit if they have the same name here; their
            shapes would not tell.
        channels: Z, the number of channels of latents.
        compression: H / h and W / w, the pixels along each side of one latent place.
        pixel_channels: The channels of the pixels, 3 for RGB or 4 for RGBA.
    """

    latent_space: str
    channels: int
    compression: int
    pixel_channels: int = 3


class LatentCodec(Loadable):
    """A codec (VAE) that encodes pixels into normalised latents, and decodes latents into pixels.

    A plugin registers a subclass as a component of kind "codec".
    """

    @property
    def decoder(self) -> nn.Module | None:
        """The part of the network that only `decode` runs, not `encode`; None if the network has no such part."""
        return None

    @abstractmethod
    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels.

        Args:
            pixels: [B, 3 or 4, H, W] in [-1, 1]; H and W are multiples of `CodecSpec.compression`.
            generator: If given, the latents are a sample of the posterior that it draws; else they are its mode.

        Returns:
            Latents [B, Z, h, w], normalised by the mean and standard deviation in the model's configuration.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, Z, h, w] into pixels [B, 3 or 4, H, W], clamped to [-1, 1]."""


def require_latents(latents: Tensor, channels: int) -> Tensor:
    """Return latents if they have the form [B, Z, h, w] with Z = `channels`, which `LatentCodec.decode` takes.

    Raises:
        ConfigError: They have another form, such as that of tokens.
    """
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ConfigError(
            f"decode takes latents [B, {channels}, h, w], got shape {tuple(latents.shape)}",
            "Tokens [B, L, C] are decoded by `pipe.decode(latents, height, width)`.",
        )
    return latents
