"""Finds what made values that are not finite: a weight of a component, or a component whose weights are finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qframe.errors import NumericsError, WeightsError
from qframe.interfaces import Parts

_SHOWN = 3
_PLAIN = (Tensor, nn.Parameter)
_AFFORDABLE = 1_000_000_000  # bytes in the machine's memory
ADVICE = "The weights are damaged: take this file anew from where the model was published, or leave the LoRA out."
"""What to do next where weights are not finite."""


@contextlib.contextmanager
def naming_culprit(parts: Parts) -> Iterator[None]:
    """A context that adds to a NumericsError which weights of the loaded components are not finite, if any are.

    The weights are read only when the error is raised, because reading all of them takes seconds.
    """
    try:
        yield
    except NumericsError as error:
        found = broken_weights(parts)
        if found is None or found in error.message:
            raise
        raise NumericsError(f"{error.message}: {found}", ADVICE) from error


def broken_weights(parts: Parts) -> str | None:
    """Return in words which weights of the loaded components are not finite; None if all are finite."""
    loaded = {"encoder": parts.loaded_encoder, "denoiser": parts.loaded_denoiser, "codec": parts.loaded_codec}
    told = []
    for role, part in loaded.items():
        found = None if part is None or part.network is None else broken_in(role, part.network)
        if found is not None:
            told.append(found)
    return "; ".join(told) or None


def broken_in(role: str, network: nn.Module) -> str | None:
    """Return in words which weights of a network are not finite; None if all are. Of a shard, its own are read."""
    names = _broken(network)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"weights of the {role} are not finite: {', '.join(names[:_SHOWN])}{more}" if names else None


def check_loaded(role: str, network: nn.Module, name: str) -> None:
    """Refuse a network that was just loaded if weights of it are not finite, where finding out takes below a second.

    This is where the weights are small, or lie on an accelerator. Others are looked at when a result is not finite: on
    a CPU, reading tens of GB takes half a minute.

    Args:
        role: The role of the component.
        network: Its network.
        name: The name of the model, for the error.

    Raises:
        WeightsError: Weights are not finite; the message names the component and some of them.
    """
    weights = [one for one in network.parameters() if one.is_floating_point() and not one.is_meta]
    if sum(one.nbytes for one in weights if one.device.type == "cpu") > _AFFORDABLE:
        return
    found = broken_in(role, network)
    if found is not None:
        raise WeightsError(f"model {name!r}: {found}", ADVICE)


@torch.no_grad()
def _broken(network: nn.Module) -> list[str]:
    """The names of parameters that are not finite; quantised weights, of other classes than Parameter, are passed by.

    A sum is not finite if one of its terms is not; it is read from a device once for all parameters.
    """
    names, finite = [], []
    for name, parameter in network.named_parameters():
        own = _local(parameter)
        if type(own) in _PLAIN and own.is_floating_point() and not own.is_meta and own.numel():
            names.append(name)
            finite.append(torch.isfinite(own.sum(dtype=torch.float32)))
    states = torch.stack([one.cpu() for one in finite]).tolist() if finite else []
    suspects = [name for name, is_finite in zip(names, states, strict=True) if not is_finite]
    own_parameters = dict(network.named_parameters())
    return [name for name in suspects if not bool(torch.isfinite(_local(own_parameters[name])).all())]


def _local(parameter: Tensor) -> Tensor:
    """The shard of a parameter that is on this device; the parameter itself if it is not sharded."""
    found: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return found
