"""Which examples make a batch, and how it is split over processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError
from qframe.train.order import (
    BatchOrder,
    BucketedOrder,
    FixedOrder,
    PackedOrder,
    SampleSize,
    make_order,
    sample_sizes,
)
from tests.train.conftest import SizedList

WIDE, TALL, SQUARE = ((1, 2, 6),), ((1, 6, 2),), ((1, 4, 4), (1, 4, 4))
SIZES = [SampleSize(grids, 3) for grids in [WIDE] * 7 + [TALL] * 5 + [SQUARE]]
sizes_of = st.lists(
    st.builds(SampleSize, st.sampled_from([WIDE, TALL, SQUARE]), st.integers(1, 30)), min_size=1, max_size=40
)
MODES: dict[str, dict[str, Any]] = {
    "fixed": {"batch_size": 3},
    "bucketed": {"batch_size": 3},
    "packed": {"tokens_per_batch": 80},
}


def order_of(mode: str, sizes: list[SampleSize], seed: int = 0, **train: Any) -> BatchOrder:
    config = TrainConfig(batching=mode, seed=seed, **{**MODES[mode], **train})  # type: ignore[arg-type]
    return make_order(sizes, config, lambda index: f"example-{index}")


def varied_sizes(count: int, seed: int = 0) -> list[SampleSize]:
    """Edits of pictures of about 1024 x 1024 and smaller ones, as a data set has them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(64, 64), (48, 80), (80, 48), (32, 32), (40, 24), (88, 44)]
    chosen = torch.randint(len(shapes), (count,), generator=generator).tolist()
    text = torch.randint(20, 500, (count,), generator=generator).tolist()
    return [SampleSize(((1, *shapes[s]), (1, *shapes[s])), t) for s, t in zip(chosen, text, strict=True)]


def epoch(order: FixedOrder, number: int) -> list[tuple[int, ...]]:
    count = order.batches_per_epoch()
    return [order.batch(number * count + i).indices for i in range(count)]


# -- what a batch holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_class", [FixedOrder, BucketedOrder])
@given(sizes_of, st.integers(1, 9), st.integers(0, 3))
def test_every_batch_is_full_and_nothing_but_the_top_up_repeats(
    order_class: type[FixedOrder], sizes: list[SampleSize], size: int, seed: int
) -> None:
    batches = epoch(order_class(sizes, seed, size), 1)
    assert all(len(batch) == size for batch in batches)
    counts = Counter(i for batch in batches for i in batch)
    assert set(counts) == set(range(len(sizes)))
    assert sum(counts.values()) - len(sizes) < size


def test_only_left_overs_mix_shapes() -> None:
    order = BucketedOrder(SIZES, 1, 3)
    mixed = [batch for batch in epoch(order, 0) if len({SIZES[i].grids for i in batch}) > 1]
    whole = 7 // 3 + 5 // 3
    assert len(mixed) <= order.batches_per_epoch() - whole


def test_a_bucket_has_prompts_of_similar_length() -> None:
    sizes = [SampleSize(WIDE, 1 + index * 37 % 400) for index in range(400)]

    def padding(order: FixedOrder) -> int:
        lengths = [[sizes[index].text for index in batch] for batch in epoch(order, 0)]
        return sum(max(own) * len(own) - sum(own) for own in lengths)

    assert padding(BucketedOrder(sizes, 0, 8)) < 0.4 * padding(FixedOrder(sizes, 0, 8))
    order = BucketedOrder(sizes, 0, 8)
    assert epoch(order, 0) != epoch(order, 1)


def test_a_fixed_order_mixes_shapes() -> None:
    assert any(len({SIZES[i].grids for i in batch}) > 1 for batch in epoch(FixedOrder(SIZES, 0, 3), 0)[:3])


@given(sizes_of, st.integers(65, 200), st.integers(0, 3))
def test_packed_batches_keep_the_budget_and_all_but_one_are_half_full(
    sizes: list[SampleSize], budget: int, seed: int
) -> None:
    order = PackedOrder(sizes, seed, budget)
    seen: Counter[int] = Counter()
    loads = []
    number = 0
    while set(seen) != set(range(len(sizes))):
        portion = order.batch(number)
        assert len(set(portion.indices)) == len(portion.indices) == portion.samples
        loads.append(sum(sizes[index].tokens for index in portion.indices))
        seen.update(portion.indices)
        number += 1
    assert max(loads) <= budget
    assert sum(load < budget / 2 for load in loads) <= 1
    assert number <= 2 * sum(size.tokens for size in sizes) / budget + 2, "an epoch is no longer than it must be"


def test_packed_batches_are_nearly_full() -> None:
    sizes = varied_sizes(3000)
    order = PackedOrder(sizes, 0, 40_000)
    portions = [order.batch(number) for number in range(400)]
    loads = [sum(sizes[index].tokens for index in portion.indices) for portion in portions]
    assert sum(loads) / len(loads) > 0.97 * 40_000
    assert len({portion.samples for portion in portions}) > 3
    assert any(len({sizes[index].grids for index in portion.indices}) > 2 for portion in portions)


def test_examples_above_the_budget_are_named_with_both_numbers() -> None:
    said = r"tokens_per_batch is 20, and 1 of 13 examples are larger:\n.*example-12: 35"
    with pytest.raises(ConfigError, match=said):
        order_of("packed", SIZES, tokens_per_batch=20)
    assert order_of("packed", SIZES, tokens_per_batch=35).batch(0).samples >= 1


def test_packed_batching_needs_a_budget() -> None:
    with pytest.raises(ConfigError, match=r"train\.tokens_per_batch is not set"):
        order_of("packed", SIZES, tokens_per_batch=None)


# -- a function of seed and number ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [1, 3])
def test_the_order_is_a_function_of_seed_and_number(mode: str, world: int) -> None:
    first, again, other = (order_of(mode, SIZES, seed) for seed in (5, 5, 6))
    numbers = [40, 3, 17, 0]
    forward = [first.batch(n, 0, world) for n in numbers]
    assert forward == [again.batch(n, 0, world) for n in reversed(numbers)][::-1]
    assert [first.batch(n) for n in range(20)] != [other.batch(n) for n in range(20)]


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_visits_every_example_in_an_order_of_its_own(mode: str) -> None:
    order = order_of(mode, SIZES)
    seen = [order.batch(number).indices for number in range(30)]
    flat = [index for indices in seen for index in indices]
    assert set(flat[: len(SIZES) + 3]) == set(range(len(SIZES))), "in one epoch, its top-up included"
    assert Counter(seen).most_common(1)[0][1] < len(seen) / 2


def test_nothing_to_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        BucketedOrder([], 0, 1)


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(sizes_of, st.integers(1, 5), st.integers(0, 30))
def test_processes_share_a_batch_without_overlap_or_gap(
    mode: str, sizes: list[SampleSize], world: int, number: int
) -> None:
    order = order_of(mode, sizes)
    portions = [order.batch(number, rank, world) for rank in range(world)]
    slots = sorted(slot for portion in portions for slot in portion.slots)
    assert all(portion.indices for portion in portions), "no process is without work"
    assert slots == list(range(portions[0].samples)), "each place is computed by one process"
    assert {portion.samples for portion in portions} == {len(slots)}


@pytest.mark.parametrize("mode", ["fixed", "bucketed"])
def test_processes_compute_the_batch_of_one_process_with_as_many_more_samples(mode: str) -> None:
    """Two processes at batch size 1 do what one does at batch size 2."""
    split, whole = order_of(mode, SIZES, batch_size=2), order_of(mode, SIZES, batch_size=6)
    for number in range(12):
        indices = whole.batch(number).indices
        for rank in range(3):
            portion = split.batch(number, rank, 3)
            assert [indices[slot] for slot in portion.slots] == list(portion.indices)


def test_packed_processes_compute_what_accumulation_computes() -> None:
    order = order_of("packed", SIZES)
    for number in range(12):
        for rank in range(3):
            assert order.batch(number, rank, 3).indices == order.batch(number * 3 + rank).indices


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_even_in_tokens(mode: str, world: int) -> None:
    sizes = varied_sizes(2000)
    order = order_of(mode, sizes, **({"tokens_per_batch": 60_000} if mode == "packed" else {"batch_size": 8}))
    ratios, counts = [], []
    for number in range(50):
        portions = [order.batch(number, rank, world).indices for rank in range(world)]
        loads = [sum(sizes[index].tokens for index in portion) for portion in portions]
        ratios.append(max(loads) * world / sum(loads))
        counts.append(len(set(map(len, portions))))
        if mode != "packed":
            largest = max(sizes[index].tokens for portion in portions for index in portion)
            assert max(loads) <= sum(loads) / world + largest, "Graham's bound"
    assert max(ratios) < 1.35
    assert sum(ratios) / len(ratios) < 1.06
    if mode != "bucketed":
        assert max(counts) > 1, "not even in samples"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_together_visit_every_example_in_an_epoch(mode: str, world: int) -> None:
    order = order_of(mode, SIZES)
    seen: list[int] = []
    number = 0
    while len(seen) < len(SIZES) + 3 * world:
        seen += [index for rank in range(world) for index in order.batch(number, rank, world).indices]
        number += 1
    assert set(seen) == set(range(len(SIZES)))


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_count_target_references_and_text() -> None:
    sizes = sample_sizes(SizedList([(((8, 4), ((4, 4), (2, 6))), 7), (((4, 4), ()), 2)]), patch=2)
    assert sizes == [SampleSize(((1, 4, 2), (1, 2, 2), (1, 1, 3)), 7), SampleSize(((1, 2, 2),), 2)]
    assert [size.tokens for size in sizes] == [8 + 4 + 3 + 7, 4 + 2]
