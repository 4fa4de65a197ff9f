"""What a pass computes and writes, counted operation by operation: as little as the original's, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs
import pytest

from qframe.interfaces import Grid
from qframe_bench.transformer import contestants, tables
from tests.bench.test_transformer import TINY
from tests.counting import work

SMALL: tuple[Grid, ...] = ((1, 4, 4),) * 2
LARGE: tuple[Grid, ...] = ((1, 8, 8),) * 2


@pytest.mark.parametrize("samples", [1, 6], ids=["a small batch", "one whose perceptron goes in halves"])
def test_a_batch_of_one_shape_does_no_more_than_the_original(samples: int) -> None:
    """What no timing on a busy machine tells: nothing is gathered, repeated or copied beyond what diffusers does."""
    found, wanted = both([LARGE] * samples)
    assert found[0] == wanted[0]
    assert found[1] <= wanted[1]


def test_a_mixed_batch_copies_little_more_than_its_groups_through_the_original() -> None:
    """The same products; runs of equal length are put together again, 8 % more bytes in all."""
    found, wanted = both([SMALL, LARGE, SMALL, LARGE])
    assert found[0] == wanted[0]
    assert found[1] < 1.1 * wanted[1]


def test_work_is_flat_in_the_number_of_shapes() -> None:
    """As many tokens in 1 to 16 different shapes: the same products, and within 10 % as many bytes written."""
    settings = attrs.evolve(TINY, layers=2)
    _, own = contestants.networks(settings)
    counted = []
    for count in (1, 2, 4, 8, 16):
        batch = contestants.random_batch(settings, tables.shapes_of(8, count), [77] * 16)
        counted.append(work(partial(contestants.run_packed, own, batch)))
    operations, written = zip(*counted, strict=True)
    assert max(operations) < 1.001 * min(operations)
    assert max(written) < 1.1 * written[0]


def both(grids: Sequence[tuple[Grid, ...]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The work of a packed batch with prompts of 7 tokens, and of its groups through diffusers."""
    settings = attrs.evolve(TINY, layers=2)
    stock, own = contestants.networks(settings)
    batch = contestants.random_batch(settings, grids, [7] * len(grids))
    return (
        work(partial(contestants.run_packed, own, batch)),
        work(partial(contestants.run_groups, stock, batch.by_shape())),
    )
