"""Samples are sorted so that equal ones are neighbours; nothing is repeated over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qframe_qwen_per_sample_rope.layout import Group, Layout, Run, add_gated, make_layout, modulate
from tests.per_sample_rope.oracle import GRIDS, TEXTS

CPU = torch.device("cpu")


def layout(**more: Any) -> Layout:
    return make_layout(GRIDS, TEXTS, axes=(4, 6, 6), device=CPU, **more)


def test_equal_samples_are_neighbours() -> None:
    found = layout()
    assert found.order == (1, 5, 4, 0, 2, 3)
    assert found.image.runs == (Run(0, 1, 9, 9), Run(1, 1, 16, 16), Run(2, 1, 27, 27), Run(3, 3, 28, 28))
    assert found.text.runs == (Run(0, 1, 9, 9), Run(1, 1, 1, 1), Run(2, 1, 3, 3), Run(3, 2, 5, 5), Run(5, 1, 8, 8))
    assert found.groups == (Group(1, 9, 9), Group(1, 1, 16), Group(1, 3, 27), Group(2, 5, 28), Group(1, 8, 28))


def test_rows_of_references_are_known_where_they_are_modulated_apart() -> None:
    assert layout(zero_cond_t=True).image.runs == (
        Run(0, 1, 9, 9),
        Run(1, 1, 16, 16),
        Run(2, 1, 27, 16),
        Run(3, 3, 28, 24),
    )


def test_sorting_is_undone() -> None:
    found = layout()
    rows = torch.arange(sum(found.image.lengths))[:, None]
    moved = found.sort(rows, found.image.lengths)
    assert not torch.equal(moved, rows)
    assert torch.equal(found.unsort(moved, found.image.lengths), rows)
    assert found.unsorted(found.text.lengths) == list(TEXTS)


def test_a_batch_in_order_is_not_copied() -> None:
    found = make_layout([GRIDS[0]] * 3, [5] * 3, axes=(4, 6, 6), device=CPU)
    rows = torch.zeros(sum(found.image.lengths), 1)
    assert found.sort(rows, found.image.lengths) is rows
    assert found.unsort(rows, found.image.lengths) is rows
    assert found.groups == (Group(3, 5, 28),)


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_modulation_by_runs_equals_modulation_by_tokens(zero_cond_t: bool) -> None:
    found = layout(zero_cond_t=zero_cond_t)
    rows = sum(found.image.lengths)
    owner = []
    for sample, run in enumerate(own for own in found.image.runs for _ in range(own.count)):
        owner += [sample] * run.target + [6 + sample] * (run.length - run.target)
    x, change = torch.randn(2, rows, 8)
    shift, scale = torch.randn(2, 12 if zero_cond_t else 6, 8)
    torch.testing.assert_close(modulate(x, shift, scale, found.image), x * (1 + scale[owner]) + shift[owner])
    torch.testing.assert_close(add_gated(x, change, scale, found.image), x + scale[owner] * change)


def test_modulation_keeps_no_copy_per_token() -> None:
    """Kept for the backward pass: rows of the streams, and one row per sample, not one per token."""
    found = layout()
    x = torch.randn(sum(found.image.lengths), 8, requires_grad=True)
    shift, scale = torch.randn(2, 6, 8)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        modulate(x, shift, scale, found.image)
    own = [t for t in kept if t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()]
    assert sum(t.numel() for t in own) <= 2 * scale.numel()
