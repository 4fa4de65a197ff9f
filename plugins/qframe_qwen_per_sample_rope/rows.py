"""Choosing rows by an index, with backward passes that neither sort nor sum in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def permuted(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return rows[order] for rows [N, ...].

    The backward pass gathers by the inverse permutation. That of plain indexing must allow for rows that are chosen
    twice: it sorts the index and adds up.

    Args:
        rows: The rows to permute, [N, ...].
        order: A permutation, [N], int64.
        inverse: The inverse permutation of `order`, [N], int64.
    """
    found: Tensor = _Permuted.apply(rows, order, inverse)
    return found


def repeated(values: Tensor, owner: Tensor) -> Tensor:
    """Return values[owner], [N, D], for values [B, D] and owner [N], int64, where N is much larger than B.

    The backward pass sums the gradients of each value's rows as a matrix product, which adds up in float32 and rounds
    once. That of plain indexing adds thousands of rows one after another in the dtype of the gradient: in bfloat16,
    what is added to a large sum is lost.
    """
    found: Tensor = _Repeated.apply(values, owner)
    return found


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient[inverse], None, None


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(owner)
        ctx.count = values.shape[0]
        return values[owner]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (owner,) = ctx.saved_tensors
        owned = torch.arange(ctx.count, device=owner.device)[:, None] == owner  # [B, N]
        return owned.to(gradient.dtype) @ gradient, None
