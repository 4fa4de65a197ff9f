"""Chooses the attention kernels that are fastest on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_MATH_ATTENTION_TOKENS = 1024
"""On a CPU the backward pass of fused attention is slower than plain matrix products up to about here."""


def attention_kernels(device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """A context in which attention uses the kernels that are fastest for samples of at most `tokens` picture tokens."""
    if device.type == "cpu" and tokens <= _MATH_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
