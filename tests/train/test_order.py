"""Which examples make a batch."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qframe.train.order import BatchOrder

SHAPES = ["wide"] * 7 + ["tall"] * 5 + ["square"] * 1


def epoch(order: BatchOrder, number: int) -> list[tuple[int, ...]]:
    start = number * order.batches_per_epoch
    return [order.batch(start + i) for i in range(order.batches_per_epoch)]


def test_an_epoch_visits_every_example() -> None:
    order = BatchOrder(SHAPES, 3, seed=0)
    for number in range(3):
        assert set(range(len(SHAPES))) <= {i for batch in epoch(order, number) for i in batch}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 3))
def test_every_batch_is_full_and_nothing_but_the_top_up_repeats(shapes: list[str], size: int, seed: int) -> None:
    order = BatchOrder(shapes, size, seed)
    batches = epoch(order, 1)
    assert all(len(batch) == size for batch in batches)
    counts = Counter(i for batch in batches for i in batch)
    assert set(counts) == set(range(len(shapes)))
    assert sum(counts.values()) - len(shapes) < size


def test_only_left_overs_mix_shapes() -> None:
    order = BatchOrder(SHAPES, 3, seed=1)
    mixed = [batch for batch in epoch(order, 0) if len({SHAPES[i] for i in batch}) > 1]
    whole = sum(SHAPES.count(shape) // 3 for shape in set(SHAPES))
    assert len(mixed) <= order.batches_per_epoch - whole


def test_the_order_is_a_function_of_seed_and_number() -> None:
    first, again, other = (BatchOrder(SHAPES, 2, seed) for seed in (5, 5, 6))
    numbers = [40, 3, 17, 0]
    assert [first.batch(n) for n in numbers] == [again.batch(n) for n in reversed(numbers)][::-1]
    assert [first.batch(n) for n in range(20)] != [other.batch(n) for n in range(20)]


def test_epochs_differ() -> None:
    order = BatchOrder(SHAPES, 1, seed=0)
    assert epoch(order, 0) != epoch(order, 1)


def test_nothing_to_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        BatchOrder([], 1, 0)
