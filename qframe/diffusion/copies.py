"""Copies of tensors from the CPU to a device that do not make the CPU wait."""

from __future__ import annotations

import torch
from torch import Tensor


def needs_pinning(device: torch.device) -> bool:
    """Whether copies to a device wait for the CPU's pageable memory. On a Mac both are one memory; "meta" has none."""
    return device.type not in ("cpu", "mps", "meta")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. If it is copied from the CPU, the CPU does not wait for the device.

    torch keeps the pinned memory until the device has read it, and then uses it for other tensors.
    """
    pins = tensor.device.type == "cpu" and needs_pinning(device)
    return tensor.pin_memory().to(device, non_blocking=True) if pins else tensor.to(device)
