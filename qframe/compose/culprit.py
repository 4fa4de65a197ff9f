"""Finds what made values that are not finite: a weight of a component, or a component whose weights are finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from qframe.errors import NumericsError
from qframe.interfaces import Parts

_SHOWN = 3
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


@torch.no_grad()
def _broken(network: nn.Module) -> list[str]:
    """The names of parameters that are not finite; those of quantised layers may be of another kind, and are passed."""
    found = []
    for name, parameter in network.named_parameters():
        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if own.is_floating_point() and not own.is_meta and not bool(torch.isfinite(own).all()):
            found.append(name)
    return found
