"""Checks what the components of plugins return against their Specs, at one place for training, sampling and encoding.

A component that is loaded gets its methods wrapped: what a method returns is checked for its type, its shape and its
order before anything is computed with it. No value on a device is read, except the noise levels of a schedule.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from qframe.errors import PluginError
from qframe.interfaces import (
    CodecSpec,
    Conditioning,
    Denoiser,
    DenoiserSpec,
    Encoder,
    EncoderSpec,
    ExampleInputs,
    LatentCodec,
    PackedSequence,
    Plan,
    Recipe,
    Sampler,
    Schedule,
)

_HINT = "This is a defect of the plugin. qframe.testing has tests for its author that find it."
_T = TypeVar("_T")


def guard(role: str, part: Any, spec: Any, about: str) -> None:
    """Check from now on what a component that was loaded for a role returns.

    Args:
        role: The role of the component.
        part: The component.
        spec: The Spec by which it describes itself; None for a schedule, which has none.
        about: Names the component and its plugin in messages.
    """
    if role == "schedule":
        guard_schedule(part, about)
    elif role in _GUARDS:
        _GUARDS[role](part, spec, about)


def guard_codec(codec: LatentCodec, spec: CodecSpec, about: str) -> None:
    """Check from now on what a codec returns; `about` names the component and its plugin in messages."""

    def encoded(pixels: Tensor, result: Any) -> None:
        batch, _, height, width = pixels.shape
        sides = (height // spec.compression, width // spec.compression)
        _require_tensor(f"{about}: encode", result, (batch, spec.channels, *sides))

    def decoded(latents: Tensor, result: Any) -> None:
        batch, _, height, width = latents.shape
        sides = (height * spec.compression, width * spec.compression)
        _require_tensor(f"{about}: decode", result, (batch, spec.pixel_channels, *sides))

    _watch(codec, "encode", lambda given, result: encoded(given[0], result))
    _watch(codec, "decode", lambda given, result: decoded(given[0], result))


def guard_encoder(encoder: Encoder, spec: EncoderSpec, about: str) -> None:
    """Check from now on what an encoder returns; `about` names the component and its plugin in messages."""

    def encoded(given: tuple[Any, ...], result: Any) -> None:
        _require_type(f"{about}: encode", result, Conditioning)
        _require_tensor(f"{about}: encode: embeds", result.embeds, (sum(result.lengths), spec.width))
        if set(result.extras) != set(spec.extras):
            raise PluginError(
                f"{about}: encode returned the extras {sorted(result.extras)}, its EncoderSpec names "
                f"{sorted(spec.extras)}",
                _HINT,
            )
        if result.batch_size != len(given[0]):
            told = f"{about}: encode returned {result.batch_size} samples for {len(given[0])} prompts"
            raise PluginError(told, _HINT)

    _watch(encoder, "encode", encoded)


def guard_denoiser(denoiser: Denoiser, spec: DenoiserSpec, about: str) -> None:
    """Check from now on what a denoiser returns; `about` names the component and its plugin in messages."""

    def bound(given: tuple[Any, ...], result: Any) -> Callable[[Tensor, Tensor], Tensor]:
        if not callable(result):
            raise PluginError(f"{about}: bind returned a {type(result).__name__}, expected a function", _HINT)

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            predicted = result(tokens, sigma)
            _require_tensor(f"{about}: the velocity that bind returned", predicted, tuple(tokens.shape))
            return predicted  # type: ignore[no-any-return]

        return velocity

    def predicted(given: tuple[Any, ...], result: Any) -> None:
        _require_tensor(f"{about}: velocity", result, tuple(given[0].tokens.shape))

    _watch(denoiser, "velocity", predicted)
    _watch(denoiser, "bind", bound)


def guard_schedule(schedule: Schedule, about: str) -> None:
    """Check from now on the sigmas of a schedule; `about` names the component and its plugin in messages."""
    _watch(schedule, "sigmas", lambda given, result: _require_sigmas(f"{about}: sigmas", result))

    def shifted(given: tuple[Any, ...], result: Any) -> None:
        _require_tensor(f"{about}: shift", result, tuple(given[0].shape))

    _watch(schedule, "shift", shifted)


def guard_sampler(sampler: Sampler, about: str) -> None:
    """Check from now on what a sampler returns; `about` names the component and its plugin in messages."""

    def sampled(given: tuple[Any, ...], result: Any) -> None:
        _require_tensor(f"{about}: sample", result, tuple(given[1].shape))

    _watch(sampler, "sample", sampled)


def guard_recipe(recipe: Recipe, denoiser: DenoiserSpec, about: str) -> None:
    """Check from now on the plans and inputs that a recipe makes; `about` names family and plugin in messages."""

    def planned(given: tuple[Any, ...], result: Any) -> None:
        _require_type(f"{about}: plan", result, Plan)
        _require_sigmas(f"{about}: plan: sigmas", result.sigmas)
        for name in ("start", "references"):
            sequence = getattr(result, name)
            if sequence is not None:
                _require_type(f"{about}: plan: {name}", sequence, PackedSequence)
                shape = (sequence.tokens.shape[0], denoiser.token_channels)
                _require_tensor(f"{about}: plan: {name}", sequence.tokens, shape)

    _watch(recipe, "plan", planned)
    _watch(recipe, "inputs", lambda given, result: _require_type(f"{about}: inputs", result, ExampleInputs))


_GUARDS: dict[str, Callable[[Any, Any, str], None]] = {
    "codec": guard_codec,
    "encoder": guard_encoder,
    "denoiser": guard_denoiser,
}


def _watch(part: Any, method: str, check: Callable[[tuple[Any, ...], Any], Any]) -> None:
    """Have what a method of one instance returns checked from now on.

    The instance gets a class of its own, which differs from its class in this method alone. A method in the instance
    itself would refer to the instance, which would then keep its weights until a garbage collection.

    Args:
        part: The instance.
        method: The name of the method.
        check: Is called with the arguments by position and the result. It may return another result.
    """
    kind = type(part)
    called = getattr(part, method)
    names = list(inspect.signature(called).parameters)
    own: Any = getattr(kind, method, None)  # None where __getattr__ makes the method
    made: Any = called if own is None else None  # what the class refers to must not refer to the instance

    @functools.wraps(called if own is None else own)
    def watched(self: Any, *given: Any, **named: Any) -> Any:
        result = own(self, *given, **named) if made is None else made(*given, **named)
        places = given or tuple(named[name] for name in names if name in named)
        replaced = check(places, result)
        return result if replaced is None else replaced

    about = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    object.__setattr__(part, "__class__", type(kind.__name__, (kind,), {**about, method: watched}))


def _require_type(what: str, value: Any, kind: type[_T]) -> None:
    if not isinstance(value, kind):
        raise PluginError(f"{what} returned a {type(value).__name__}, expected a {kind.__name__}", _HINT)


def _require_tensor(what: str, value: Any, shape: tuple[int, ...]) -> None:
    _require_type(what, value, Tensor)
    if tuple(value.shape) != shape or not value.is_floating_point():
        found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        raise PluginError(f"{what} returned {found}, expected floating-point numbers {list(shape)}", _HINT)


def _require_sigmas(what: str, value: Any) -> None:
    _require_type(what, value, Tensor)
    if value.ndim != 1 or len(value) < 2 or not value.is_floating_point():
        raise PluginError(f"{what} have the shape {list(value.shape)}, expected [steps + 1] numbers", _HINT)
    if not bool(torch.isfinite(value).all()) or not bool((value.diff() < 0).all()):
        shown = ", ".join(f"{one:.4g}" for one in value[:4].tolist())
        raise PluginError(f"{what} are {shown}, ..., expected finite numbers that fall to 0", _HINT)
