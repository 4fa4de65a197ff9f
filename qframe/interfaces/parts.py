"""The components of one family, as far as a stage has loaded them."""

from __future__ import annotations

from typing import TypeVar

import attrs

from qframe.errors import QframeError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces.codec import CodecSpec, LatentCodec
from qframe.interfaces.denoiser import Denoiser, DenoiserSpec
from qframe.interfaces.encoder import Encoder, EncoderSpec
from qframe.interfaces.sampler import Sampler
from qframe.interfaces.schedule import Schedule

_T = TypeVar("_T")


@attrs.frozen(eq=False, kw_only=True)
class Parts:
    """The components of one family, as far as this stage loaded them, and what is known of all of them."""

    encoder_spec: EncoderSpec
    codec_spec: CodecSpec
    denoiser_spec: DenoiserSpec
    schedule: Schedule
    sampler: Sampler
    model: ModelFolder
    loaded_encoder: Encoder | None = None
    loaded_codec: LatentCodec | None = None
    loaded_denoiser: Denoiser | None = None

    @property
    def encoder(self) -> Encoder:
        return _needed(self.loaded_encoder, "encoder")

    @property
    def codec(self) -> LatentCodec:
        return _needed(self.loaded_codec, "codec")

    @property
    def denoiser(self) -> Denoiser:
        return _needed(self.loaded_denoiser, "denoiser")

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this many pixels."""
        return self.codec_spec.compression * self.denoiser_spec.patch


def _needed(part: _T | None, name: str) -> _T:
    if part is None:
        raise QframeError(f"the {name} is needed here, but this stage did not load it", "This is a bug in a recipe.")
    return part
