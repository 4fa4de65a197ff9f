"""The components of a family, as far as a stage of the work has loaded them."""

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
    """The components of one family: what is known of all of them, and those that this stage has loaded.

    Attributes:
        encoder_spec: What is known of the encoder without loading it.
        codec_spec: What is known of the codec without loading it.
        denoiser_spec: What is known of the denoiser without loading it.
        schedule: The noise levels; it has no weights and is always there.
        sampler: The integrator; it has no weights and is always there.
        model: The model folder of the whole configuration.
        loaded_encoder: The encoder, or None where this stage has not loaded it. Likewise the next two.
        loaded_codec: The codec, or None.
        loaded_denoiser: The denoiser, or None.
    """

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
        """The encoder. QframeError if this stage has not loaded it, and likewise the next two."""
        return _needed(self.loaded_encoder, "encoder")

    @property
    def codec(self) -> LatentCodec:
        """The codec."""
        return _needed(self.loaded_codec, "codec")

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser."""
        return _needed(self.loaded_denoiser, "denoiser")

    @property
    def multiple(self) -> int:
        """The sides of a picture must be multiples of this many pixels."""
        return self.codec_spec.compression * self.denoiser_spec.patch


def _needed(part: _T | None, name: str) -> _T:
    if part is None:
        raise QframeError(f"the {name} is needed here, but this stage did not load it", "This is a bug in a recipe.")
    return part
