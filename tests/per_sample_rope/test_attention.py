"""Samples attend to themselves alone, by whichever kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from qframe_qwen_per_sample_rope import attention
from qframe_qwen_per_sample_rope.layout import make_layout
from tests.per_sample_rope.oracle import (
    BFLOAT16_BOUND,
    GRIDS,
    TEXTS,
    Sample,
    assert_same,
    one_by_one,
    own_network,
    packed,
    relative_error,
    samples,
    stock_network,
)


def heads(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, rows, 2, 8, generator=torch.Generator().manual_seed(seed))
    return query, key, value


def by_mask(text: Any, image: Any, layout: Any) -> tuple[Tensor, Tensor]:
    """The definition: every token with every token, but for those of other samples."""
    owner = torch.cat(
        [
            torch.arange(layout.batch_size).repeat_interleave(torch.tensor(lengths))
            for lengths in (layout.text.lengths, layout.image.lengths)
        ]
    )
    query, key, value = (torch.cat([t, i]).transpose(0, 1) for t, i in zip(text, image, strict=True))
    scores = (query @ key.transpose(1, 2) / 8**0.5).masked_fill(owner[:, None] != owner, float("-inf"))
    found = (scores.softmax(-1) @ value).transpose(0, 1)
    return found[: len(text[0])], found[len(text[0]) :]


def varlen_by_loop(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *rest: Any) -> Tensor:
    """What the CUDA kernel computes, for machines without one."""
    other, longest, same = rest
    assert torch.equal(ends, other)
    assert ends.dtype == torch.int32
    sizes = ends.diff().tolist()
    assert longest == same == max(sizes)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in qkv)).transpose(0, 1)
        for qkv in zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("ragged", [False, True], ids=["groups", "ragged kernel"])
def test_attention_is_block_diagonal(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """B58."""
    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: ragged)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_loop)
    layout = make_layout(GRIDS, TEXTS, axes=(4, 6, 6), device=torch.device("cpu"))
    text, image = heads(sum(TEXTS), 0), heads(sum(layout.image.lengths), 1)
    for found, wanted in zip(attention.attend(text, image, layout), by_mask(text, image, layout), strict=True):
        assert_same(found, wanted, 1e-6)


def test_the_ragged_kernel_is_called_once_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(*given: Any) -> Tensor:
        calls.append(given)
        return varlen_by_loop(*given)

    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: True)
    monkeypatch.setattr(varlen, "varlen_attn", count)
    stock = stock_network().requires_grad_(False)
    assert_same(packed(own_network(stock), samples()), one_by_one(stock, samples()))
    assert len(calls) == 2


def test_a_uniform_batch_takes_the_dense_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: True)
    monkeypatch.delattr(varlen, "varlen_attn")
    stock = stock_network().requires_grad_(False)
    batch = samples([GRIDS[0]] * 3, [5] * 3)
    assert_same(packed(own_network(stock), batch), one_by_one(stock, batch))


def test_no_kernel_gets_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """One dense call per group of equal samples, without a mask, and no work on padding."""
    calls: list[tuple[int, ...]] = []
    real = attention.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(tuple(query.shape[i] for i in (0, 2)))
        return real(query, key, value)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    packed(own_network(stock_network()), samples())
    assert sorted(calls) == sorted([(1, 18), (1, 17), (1, 30), (2, 33), (1, 36)] * 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_ragged_kernel_on_a_gpu_equals_the_original_alone() -> None:
    """In bfloat16, as near to float32 as diffusers alone is. Heads of 64: flash kernels take multiples of 8."""
    wide = {"attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}
    stock = stock_network(large=False, **wide).requires_grad_(False).cuda()
    batch = [Sample(s.tokens.cuda(), s.grids, s.text.cuda(), s.time.cuda()) for s in samples()]
    exact = one_by_one(stock, batch)
    low = [Sample(s.tokens.bfloat16(), s.grids, s.text.bfloat16(), s.time) for s in batch]
    own = own_network(stock).cuda().bfloat16()
    error = relative_error(packed(own, low).float(), exact)
    assert error < 1.25 * relative_error(one_by_one(stock.bfloat16(), low).float(), exact)


def as_strict_as_cuda(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """The flash kernel takes half precision alone, and one dtype for all three."""
    assert query.dtype == key.dtype == value.dtype, "query, key and value must have the same dtype"
    assert query.dtype in (torch.float16, torch.bfloat16), "the flash kernel takes half precision alone"
    return varlen_by_loop(query, key, value, *rest)


def test_the_ragged_kernel_gets_one_dtype_from_float32_weights_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a full fine-tuning: norms with float32 weights leave queries and keys in float32, values are bfloat16."""
    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: x.dtype == torch.bfloat16)
    monkeypatch.setattr(varlen, "varlen_attn", as_strict_as_cuda)
    stock = stock_network(large=False).requires_grad_(False)
    exact = one_by_one(stock, samples())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed(own_network(stock), samples())
    assert relative_error(found, exact) < BFLOAT16_BOUND
