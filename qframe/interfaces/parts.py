"""The components of a family, of which a stage of the work (encoding, training, sampling) loads those that it needs."""

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
    """The components of one family: the Specs of all, and those components that this stage of the work has loaded.

    Attributes:
        encoder_spec: The Spec of the encoder, known without loading it.
        codec_spec: The Spec of the codec, known without loading it.
        denoiser_spec: The Spec of the denoiser, known without loading it.
        schedule: The schedule. It has no weights, and is always there.
        sampler: The sampler. It has no weights, and is always there.
        model: The model folder of the whole configuration.
        loaded_encoder: The encoder; None if this stage of the work has not loaded it.
        loaded_codec: The codec; None if this stage has not loaded it.
        loaded_denoiser: The denoiser; None if this stage has not loaded it.
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
        """The loaded encoder. Raises QframeError if this stage of the work has not loaded it."""
        return _needed(self.loaded_encoder, "encoder")

    @property
    def codec(self) -> LatentCodec:
        """The loaded codec. Raises QframeError if this stage of the work has not loaded it."""
        return _needed(self.loaded_codec, "codec")

    @property
    def denoiser(self) -> Denoiser:
        """The loaded denoiser. Raises QframeError if this stage of the work has not loaded it."""
        return _needed(self.loaded_denoiser, "denoiser")

    @property
    def multiple(self) -> int:
        """The number of pixels that the height and the width of a picture must be multiples of."""
        return self.codec_spec.compression * self.denoiser_spec.patch


def _needed(part: _T | None, name: str) -> _T:
    if part is None:
        raise QframeError(f"the {name} is needed here, but this stage did not load it", "This is a bug in a recipe.")
    return part
