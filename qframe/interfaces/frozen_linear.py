"""A linear layer for quantisers: its weight is a quantised tensor, which is dequantised only while it is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qframe.interfaces.quantiser import flattened


class FrozenLinear(nn.Linear):
    """A linear layer whose weight is frozen and quantised.

    The weight is a tensor subclass that has the shape and the dtype which the weight had, and a method `dequantize`;
    `torch.nn.functional.linear` accepts it. The layer computes in the dtype of the weight, also inside autocast. For
    the backward pass it keeps the quantised weight; a layer of torch would keep the dequantised one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Make the layer.

        Args:
            weight: The quantised weight, [out, in].
            bias: The bias, [out].
        """
        out, inputs = weight.shape
        super().__init__(inputs, out, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = _Frozen.apply(x.to(self.weight.dtype), self.weight, self.bias)
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return the plain tensors of the layer: those inside the weight, as "weight.scale", and "bias"."""
        return flattened(self.weight) | ({} if self.bias is None else {"bias": self.bias.detach()})


class _Frozen(torch.autograd.Function):
    """A product with a quantised weight that gets no gradient; the weight is dequantised again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight.dequantize().to(grad.dtype), None, None
