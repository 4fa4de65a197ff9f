"""The components of a family, of which a stage of the work (encoding, training, sampling) loads those that it needs."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

from qframe.errors import ConfigError, QframeError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces.codec import CodecSpec, LatentCodec
from qframe.interfaces.denoiser import Denoiser, DenoiserSpec
from qframe.interfaces.encoder import Encoder, EncoderSpec
from qframe.interfaces.sampler import Sampler
from qframe.interfaces.schedule import Schedule

_T = TypeVar("_T")


SPECS: dict[str, type] = {"encoder": EncoderSpec, "codec": CodecSpec, "denoiser": DenoiserSpec}
"""The class of the Spec that a component of a role has, for the roles whose components describe themselves."""
_INTERFACES: dict[str, type] = {
    "encoder": Encoder,
    "codec": LatentCodec,
    "denoiser": Denoiser,
    "schedule": Schedule,
    "sampler": Sampler,
}


def checked_instance(role: str, part: Any) -> Any:
    """Return an object that shall play a role, if it can. Raises ConfigError if it is none of the role's interface."""
    interface = _INTERFACES[role]
    if isinstance(part, type):
        raise ConfigError(
            f"{role}: {part.__name__} is a class, and an instance is expected",
            f"Give {part.__name__}(...), or give the class to qframe.register and then its name here.",
        )
    if not isinstance(part, interface):
        raise ConfigError(
            f"{role}: expected an instance of qframe.interfaces.{interface.__name__}, got a {type(part).__name__}",
            "Subclass it; docs/guides/write-a-plugin.md names its methods.",
        )
    return part


def spec_of(role: str, part: Any, model: ModelFolder) -> Any:
    """Return the Spec of an instance in a role: its attribute `spec`, or what its class says about the model folder.

    Raises:
        ConfigError: It is no Spec of the role.
    """
    spec = part.spec if part.spec is not None else type(part).describe(model, None)
    if not isinstance(spec, SPECS[role]):
        raise ConfigError(
            f"{role}: the spec of {type(part).__name__} is a {type(spec).__name__}, expected a {SPECS[role].__name__}",
            f"Set its attribute spec to a qframe.interfaces.{SPECS[role].__name__}.",
        )
    return spec


def _check(parts: Parts, attribute: attrs.Attribute[Any], part: Any) -> Any:
    """Let `parts.sampler = instance` put in what can play this role, and nothing else."""
    if attribute.name not in _INTERFACES:
        raise ConfigError(f"parts.{attribute.name} cannot be set", f"Set one of {', '.join(_INTERFACES)}.")
    return checked_instance(attribute.name, part)


@attrs.define(eq=False, kw_only=True, on_setattr=_check, repr=False)
class Parts:
    """The components of one family: the Specs of all, and those components that this stage of the work has loaded.

    A component may be put in the place of another one, as in `pipe.parts.sampler = MySampler()`; its Spec comes along.
    Whether the components still fit each other is checked when the pipeline is called.

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

    @encoder.setter
    def encoder(self, part: Encoder) -> None:
        self._put("encoder", part)

    @property
    def codec(self) -> LatentCodec:
        """The loaded codec. Raises QframeError if this stage of the work has not loaded it."""
        return _needed(self.loaded_codec, "codec")

    @codec.setter
    def codec(self, part: LatentCodec) -> None:
        self._put("codec", part)

    @property
    def denoiser(self) -> Denoiser:
        """The loaded denoiser. Raises QframeError if this stage of the work has not loaded it."""
        return _needed(self.loaded_denoiser, "denoiser")

    @denoiser.setter
    def denoiser(self, part: Denoiser) -> None:
        self._put("denoiser", part)

    @property
    def multiple(self) -> int:
        """The number of pixels that the height and the width of a picture must be multiples of."""
        return self.codec_spec.compression * self.denoiser_spec.patch

    def __repr__(self) -> str:
        found = {role: getattr(self, f"loaded_{role}") for role in SPECS}
        found |= {"schedule": self.schedule, "sampler": self.sampler}
        named = (f"{role}={type(part).__name__}" for role, part in found.items() if part is not None)
        return f"Parts({', '.join(named)})"

    def _put(self, role: str, part: Any) -> None:
        spec = spec_of(role, checked_instance(role, part), self.model)
        for name, value in ((f"{role}_spec", spec), (f"loaded_{role}", part)):
            object.__setattr__(self, name, value)


def _needed(part: _T | None, name: str) -> _T:
    if part is None:
        raise QframeError(f"the {name} is needed here, but this stage did not load it", "This is a bug in a recipe.")
    return part
