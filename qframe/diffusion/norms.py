"""Layer norms that keep the dtype of a network's stream, also where autocast would not."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class StreamNorm(nn.LayerNorm):
    """A layer norm without weights whose result has the dtype of its input, also under the autocast of CUDA.

    The kernel computes in float32 and rounds once, whatever the dtype is. CUDA's autocast also converts the input to
    float32 before the kernel and returns float32: the backward pass then keeps the copy, everything up to the next
    matrix product is float32, and each of the layers that read the result converts it again. The autocast of a CPU does
    none of this, and neither does a network whose weights are bfloat16; with this norm all three compute the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return super().forward(x)


def keep_stream_dtype(network: nn.Module) -> None:
    """Replace all layer norms of `network` that have no weights by `StreamNorm`."""
    for name, part in list(network.named_modules()):
        if type(part) is nn.LayerNorm and not part.elementwise_affine:
            network.set_submodule(name, StreamNorm(part.normalized_shape, part.eps, elementwise_affine=False))
