"""Pinned host memory, which copies to and from a card need if the host is not to wait for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

_STORAGES: dict[int, Any] = {}
_empty_before = torch.empty


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether a tensor lies in memory that `pin_memory` made."""
    return type(tensor).__name__ != "CardTensor" and tensor.untyped_storage()._cdata in _STORAGES


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """A copy of a tensor of the CPU in pinned memory; the tensor itself if it is pinned already."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin {tensor.type()} of {tensor.device}: only dense CPU tensors can be pinned")
    return tensor if is_pinned(tensor) else remember(tensor.clone(memory_format=torch.contiguous_format))


def remember(tensor: Tensor) -> Tensor:
    """Note that the memory of a tensor is pinned. It is kept for good, so that no other tensor gets its address."""
    storage = tensor.untyped_storage()
    _STORAGES[storage._cdata] = storage
    return tensor


def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
    """`torch.empty` on a machine that can pin memory."""
    made = _empty_before(*args, **kwargs)
    return remember(made) if pin_memory else made


def install() -> None:
    """Give torch's tensors pinned memory, which torch without a real accelerator refuses."""
    _device_constructors()  # `with torch.device(...)` lists torch.empty at its first use: it must be torch's own
    Tensor.pin_memory = pin_memory  # type: ignore[method-assign,assignment]
    Tensor.is_pinned = is_pinned  # type: ignore[method-assign,assignment]
    torch.empty = empty  # type: ignore[assignment]
