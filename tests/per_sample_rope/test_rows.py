"""Rows chosen by an index: values and gradients are those of plain indexing, without its sorting and its rounding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from qframe_qwen_per_sample_rope import attention
from qframe_qwen_per_sample_rope.layout import make_layout
from qframe_qwen_per_sample_rope.rows import permuted, repeated
from tests.per_sample_rope.oracle import GRIDS, TEXTS, relative_error
from tests.per_sample_rope.test_attention import heads, varlen_by_loop


class Counted(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[op.overloadpacket.__name__] += 1
        return op(*args, **(kwargs or {}))


def test_a_permutation_and_its_gradient_have_the_bits_of_plain_indexing() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(40, generator=generator)
    rows = torch.randn(40, 3, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(40, 3, 8, generator=generator).bfloat16()
    found, wanted = permuted(rows, order, order.argsort()), rows[order]
    assert torch.equal(found, wanted)
    assert torch.equal(*(torch.autograd.grad((made * weight).sum(), rows)[0] for made in (found, wanted)))
    assert torch.autograd.gradcheck(
        lambda x: permuted(x, order[:40], order.argsort()), rows.double().detach().requires_grad_()
    )


def test_the_backward_pass_of_ragged_attention_neither_sorts_nor_adds_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: True)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_loop)
    layout = make_layout(GRIDS, TEXTS, axes=(4, 6, 6), device=torch.device("cpu"))
    text, image = heads(sum(TEXTS), 0), heads(sum(layout.image.lengths), 1)
    for part in (*text, *image):
        part.requires_grad_()
    found = attention.attend(text, image, layout)
    with Counted() as counted:
        sum(part.square().sum() for part in found).backward()  # type: ignore[union-attr]
    assert counted.found["index"] == 4  # queries, keys, values, and what was found
    assert not [name for name in counted.found if "sort" in name or "index_put" in name or "index_add" in name]


def test_repeated_rows_are_those_of_plain_indexing() -> None:
    generator = torch.Generator().manual_seed(1)
    owner = torch.tensor([0, 0, 2, 2, 2, 1])
    values = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.equal(repeated(values, owner), values[owner])
    assert torch.autograd.gradcheck(lambda x: repeated(x, owner), values)


def summed(choose: Any, gradient: Tensor, owner: Tensor) -> Tensor:
    values = torch.zeros(2, gradient.shape[1], dtype=gradient.dtype, requires_grad=True)
    choose(values, owner).backward(gradient)
    assert values.grad is not None
    return values.grad


def test_the_gradient_of_repeated_rows_is_summed_in_float32() -> None:
    """Two samples of 4096 tokens in bfloat16: one rounding. Plain indexing loses most of such a sum."""
    generator = torch.Generator().manual_seed(2)
    owner = torch.arange(2).repeat_interleave(4096)
    gradient = (torch.randn(8192, 16, generator=generator) + 1).bfloat16()
    exact = summed(repeated, gradient.double(), owner)
    assert relative_error(summed(repeated, gradient, owner), exact) < 2**-8
    assert relative_error(summed(lambda values, at: values[at], gradient, owner), exact) > 0.3
