"""State of any shape as tensors and JSON, so that it is stored without pickle and comes back to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qframe.errors import WeightsError

_PLAIN = (bool, int, str, type(None))


def pack(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a value into its tensors and everything else.

    Args:
        value: Tensors, numbers, text and None, in lists, tuples and dicts that may be nested. The keys of dicts are
            text or integers.

    Returns:
        The tensors themselves, by their place (such as "0.state.3.exp_avg"), and the rest as JSON.

    Raises:
        WeightsError: The value contains something else; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(value, (), tensors)


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put a value together again from what `pack` returned. KeyError names a tensor that is missing."""
    if not isinstance(packed, dict):
        return packed
    ((kind, inner),) = packed.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "float":
        return float(inner)
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in inner}
    items = [unpack(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items


def _pack(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = ".".join(place)
        tensors[name] = value.detach()
        return {"tensor": name}
    if type(value) in _PLAIN:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}  # NaN and infinity are not JSON
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, _pack(item, (*place, str(key)), tensors)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [_pack(item, (*place, str(index)), tensors) for index, item in enumerate(value)]}
    raise WeightsError(
        f"the optimizer's state at {'.'.join(place)} is a {type(value).__name__}, which is stored only by pickle",
        "Choose another train.optimizer, or ask its author to keep tensors and numbers.",
    )
