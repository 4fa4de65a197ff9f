"""Meters what a part of a network keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Kept:
    """One allocation that is kept for a backward pass.

    Attributes:
        shape: The shape of the tensor that was saved first.
        dtype: Its dtype.
        nbytes: The bytes of the whole allocation.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


def kept_for_backward(compute: Callable[[], Any], without: Iterable[Tensor] = ()) -> list[Kept]:
    """Run a forward pass, and return the allocations that it keeps for its backward pass, the largest first.

    Args:
        compute: The forward pass. Its result is kept until all has been counted.
        without: Tensors whose memory does not count, such as the weights and the inputs.
    """
    left_out = {tensor.untyped_storage().data_ptr() for tensor in without}
    alive: list[Tensor] = []
    found: dict[int, Kept] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in left_out and address not in found:
            alive.append(tensor)  # so that no later tensor gets this address
            found[address] = Kept(tuple(tensor.shape), tensor.dtype, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sorted(found.values(), key=lambda kept: -kept.nbytes)
