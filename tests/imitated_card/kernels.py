"""Kernels that exist on CUDA alone, computed on the CPU; they refuse what CUDA's refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

aten = torch.ops.aten


def _check(query: Tensor, key: Tensor, value: Tensor, ends: Tensor | None) -> None:
    """The conditions of mha_varlen_fwd (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError("query and key must have the same dtype")
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise RuntimeError("FlashAttention forward only supports head dimension that is a multiple of 8, at most 256")
    if any(part.stride(-1) != 1 for part in (query, key, value)):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if ends is None or ends.dtype != torch.int32:
        raise RuntimeError("cu_seqlens_q must have dtype int32")


def _attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Tensor:
    """Attention within each sequence of a packed batch [N, H, d], computed in float32."""
    sizes = ends.diff().tolist()
    parts = [
        scaled_dot_product_attention(*(x.float().transpose(0, 1) for x in qkv)).transpose(0, 1)
        for qkv in zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    ]
    return torch.cat(parts).to(query.dtype)


def flash_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    other: Tensor,
    longest: int,
    longest_key: int,
    *rest: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """aten::_flash_attention_forward for packed batches: no dropout, not causal, no window."""
    _check(query, key, value, ends)
    if not torch.equal(ends, other):
        raise NotImplementedError("the imitated kernel knows attention of a sequence to itself alone")
    made = _attention(query, key, value, ends)
    sums = torch.zeros(query.shape[1], query.shape[0])
    none = torch.zeros(2, dtype=torch.uint64)
    return made, sums, none, none.clone(), torch.zeros(0, dtype=query.dtype)


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    ends: Tensor,
    *rest: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::_flash_attention_backward for packed batches."""
    _check(query, key, value, ends)
    with torch.inference_mode(False), torch.enable_grad():
        given = [part.detach().clone().requires_grad_() for part in (query, key, value)]
        made = _attention(*given, ends)
        found = torch.autograd.grad(made, given, grad)
    return tuple(found)  # type: ignore[return-value]


KERNELS = {
    # Computed at once: the bit with which torch defers them would be ignored further down.
    aten._conj: lambda x: torch.ops.aten.conj_physical(x),
    aten._neg_view: lambda x: torch.ops.aten.neg(x),
    aten._flash_attention_forward: flash_forward,
    aten._flash_attention_backward: flash_backward,
}
"""Replacements, by operation, for all of its overloads."""


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """aten::scaled_dot_product_attention, which on CUDA keeps no matrix of scores for the backward pass."""
    if dropout_p or enable_gqa or query.dim() != 4:
        found: Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
        return found
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    fused: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
    )[0]
    return fused
