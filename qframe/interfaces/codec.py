"""The contract of a latent codec: pixels become latents, and latents become pixels again."""

from __future__ import annotations

from abc import abstractmethod

import attrs
import torch
from torch import Tensor, nn

from qframe.interfaces.loadable import Loadable


@attrs.frozen(kw_only=True)
class CodecSpec:
    """What a codec gives. latent_space names what its latents mean; channels is Z; compression is H / h."""

    latent_space: str
    channels: int
    compression: int
    pixel_channels: int = 3


class LatentCodec(Loadable):
    """Pixels to normalised latents and back."""

    @property
    def decoder(self) -> nn.Module | None:
        """The part of the network that only `decode` runs, which training can do without; None if it is not apart."""
        return None

    @abstractmethod
    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Pixels [B, C, H, W] in [-1, 1] to latents [B, Z, h, w], normalised by the checkpoint's mean and std.

        Without a generator the posterior's mode, with one a sample of it.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, h, w] to pixels [B, C, H, W] in [-1, 1]."""
