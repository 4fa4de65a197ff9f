"""Takes tensors apart into plain ones, and lays these one after another into one flat piece of memory.

A quantised weight is a tensor of a class of its own with plain tensors inside, which torch names by
`__tensor_flatten__` and joins again by `__tensor_unflatten__`. Nothing here knows a library that quantises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

ALIGNMENT = 256
"""The bytes at whose multiples a tensor begins in flat memory, as in memory that CUDA's allocator gives out."""

Join = Callable[[Sequence[Tensor]], Tensor]
"""Makes a tensor of the plain tensors that it consists of."""


def aligned(size: int) -> int:
    """Return the bytes that a tensor of `size` bytes takes in flat memory, with the gap up to the next tensor."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@attrs.frozen
class Piece:
    """The place of a plain tensor in flat memory.

    Attributes:
        offset: Where the tensor begins, in bytes.
        size: How many bytes it has.
        shape: Its shape.
        stride: Its strides, in elements.
        dtype: Its dtype.
    """

    offset: int
    size: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, memory: Tensor) -> Tensor:
        """Return the tensor as a view of flat memory, [bytes] in uint8."""
        found = memory.narrow(0, self.offset, self.size).view(self.dtype)
        return found.as_strided(self.shape, self.stride)


def lay_out(tensors: Iterable[Tensor]) -> tuple[list[Piece], int]:
    """Return the places of plain tensors that are laid one after another, and the bytes of all of them together."""
    pieces, offset = [], 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        pieces.append(Piece(offset, size, tuple(tensor.shape), _strides(tensor), tensor.dtype))
        offset += aligned(size)
    return pieces, offset


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor, or those of a contiguous one if there are gaps between its elements."""
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0 or last + 1 == tensor.numel():
        return tensor.stride()
    return tuple(math.prod(tensor.shape[place + 1 :]) for place in range(tensor.ndim))


def take_apart(tensor: Tensor) -> tuple[list[Tensor], Join]:
    """Return the plain tensors that a tensor consists of, and the function that joins others like them again."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()], lambda parts: parts[0]
    names, context = tensor.__tensor_flatten__()
    inner = [take_apart(getattr(tensor, name)) for name in names]
    kind: Any = type(tensor)
    shape, stride = tensor.shape, tensor.stride()

    def join(parts: Sequence[Tensor]) -> Tensor:
        left, made = list(parts), {}
        for name, (own, join_inner) in zip(names, inner, strict=True):
            made[name] = join_inner(left[: len(own)])
            del left[: len(own)]
        found: Tensor = kind.__tensor_unflatten__(made, context, shape, stride)
        return found

    return [part for own, _ in inner for part in own], join
