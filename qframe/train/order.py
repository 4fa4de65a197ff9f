"""Which examples make a batch, and which process takes which of them: random, from a seed, and never stored.

What a batch holds is a function of (seed, number, world), so a resumed run needs no state to find its place.
docs/explanation/batching.md says when each order pays.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count, pairwise
from typing import ClassVar, Protocol

import attrs
import torch

from qframe.cache.lengths import Shape
from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError, bullet_list
from qframe.interfaces import Grid, grid_length
from qframe.train.streams import stream

_SHOWN = 5


@attrs.frozen
class SampleSize:
    """How large an example is.

    Attributes:
        grids: The grid of its target, then those of its references.
        text: How many tokens its prompt has.
    """

    grids: tuple[Grid, ...]
    text: int

    @property
    def tokens(self) -> int:
        """All target, reference and text tokens, which the budget of a packed batch counts."""
        return sum(map(grid_length, self.grids)) + self.text


class SizedExamples(Protocol):
    """Examples whose sizes are known without reading or encoding them."""

    def __len__(self) -> int:
        """The number of examples."""

    def shape(self, index: int) -> Shape:
        """The sides of the latents of the target and of each reference."""

    def text_length(self, index: int) -> int:
        """The number of text tokens: of the caption, or of the empty prompt if that may replace it and is longer."""


def sample_sizes(examples: SizedExamples, patch: int) -> list[SampleSize]:
    """The size of every example, in order. `patch` is `DenoiserSpec.patch`."""
    return [sample_size(examples.shape(index), examples.text_length(index), patch) for index in range(len(examples))]


def sample_size(shape: Shape, text: int, patch: int) -> SampleSize:
    """The size of an example with these latent sides, and a prompt of `text` tokens."""
    return SampleSize(_grids(shape, patch), text)


@lru_cache(maxsize=4096)  # a million examples have a few dozen shapes
def _grids(shape: Shape, patch: int) -> tuple[Grid, ...]:
    return tuple((1, height // patch, width // patch) for height, width in (shape[0], *shape[1]))


@attrs.frozen
class BatchPortion:
    """The part of a batch that one process computes.

    Attributes:
        indices: The places of its examples among all examples.
        slots: The places of its examples in the batch, over all processes.
        samples: How many examples the batch has, over all processes.
    """

    indices: tuple[int, ...]
    slots: tuple[int, ...]
    samples: int


class BatchOrder(ABC):
    """An endless sequence of batches. In every epoch each example is visited at least once.

    If the last batch of an epoch would be too small, it is filled up with examples from a fresh shuffle. So no example
    is left out, and no batch is small.
    """

    def __init__(self, sizes: Sequence[SampleSize], seed: int) -> None:
        if not sizes:
            raise ValueError("there are no examples to order")
        self._sizes = sizes
        self._tokens = [size.tokens for size in sizes]
        self._seed = seed

    @abstractmethod
    def batch(self, number: int, rank: int = 0, world: int = 1) -> BatchPortion:
        """The portion that one process computes of a batch.

        The portions of a batch are disjoint, and none is empty. They have about equally many tokens, not samples.

        Args:
            number: The number of the batch, counted from 0 over all epochs.
            rank: The number of the process.
            world: The number of processes.
        """

    @abstractmethod
    def first_batch(self, epoch: int, world: int = 1) -> int:
        """The number of the batch with which an epoch (from 0) begins, for `world` processes."""

    def _shuffled(self, generator: torch.Generator, indices: Sequence[int] | None = None) -> list[int]:
        chosen: Sequence[int] = range(len(self._sizes)) if indices is None else indices
        return [chosen[place] for place in torch.randperm(len(chosen), generator=generator).tolist()]


class FixedOrder(BatchOrder):
    """Gives every process `batch_size` examples of a batch, in random order, whatever their shapes."""

    def __init__(self, sizes: Sequence[SampleSize], seed: int, batch_size: int) -> None:
        super().__init__(sizes, seed)
        self._batch_size = batch_size
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batches_per_epoch(self, world: int = 1) -> int:
        """How many batches it takes to visit every example once."""
        return -(-len(self._sizes) // (self._batch_size * world))

    def first_batch(self, epoch: int, world: int = 1) -> int:
        """See `BatchOrder.first_batch`."""
        return epoch * self.batches_per_epoch(world)

    def batch(self, number: int, rank: int = 0, world: int = 1) -> BatchPortion:
        """See `BatchOrder.batch`. A single process with a `world` times larger batch size has the same batch."""
        epoch, place = divmod(number, self.batches_per_epoch(world))
        batch = self._epoch(epoch, self._batch_size * world)[place]
        slots = tuple(range(len(batch))) if world == 1 else self._split(batch, world)[rank]
        return BatchPortion(tuple(batch[slot] for slot in slots), slots, len(batch))

    def _split(self, batch: Sequence[int], world: int) -> list[tuple[int, ...]]:
        """Return for each process the places in the batch of the examples that it computes.

        Examples are assigned from the largest to the smallest, each to the process that has the fewest tokens so far
        (Graham 1969). So no process has more tokens than the mean and one more sample. None is without examples, as the
        batch has at least one for each process.
        """
        loads = [(0, rank) for rank in range(world)]
        parts: list[list[int]] = [[] for _ in range(world)]
        for place in sorted(range(len(batch)), key=lambda place: -self._tokens[batch[place]]):
            load, rank = heapq.heappop(loads)
            parts[rank].append(place)
            heapq.heappush(loads, (load + self._tokens[batch[place]], rank))
        return [tuple(sorted(part)) for part in parts]

    def _make_epoch(self, epoch: int, size: int) -> list[tuple[int, ...]]:
        generator = stream(self._seed, "order", epoch)
        indices = self._shuffled(generator)
        return _cut(self._topped_up(indices, size, generator), size)

    def _topped_up(self, indices: list[int], size: int, generator: torch.Generator) -> list[int]:
        while len(indices) % size:
            indices = indices + self._shuffled(generator)[: size - len(indices) % size]
        return indices


class BucketedOrder(FixedOrder):
    """Gives every process `batch_size` examples of a batch, of one shape and of similar prompt length.

    The examples of each shape are shuffled, sorted by prompt length in stretches (`SORTED_TOGETHER`), and cut into full
    batches. The examples that are left over of all shapes make batches of mixed shapes. So no example of a rare shape
    is dropped, and every batch has the same number of examples.
    """

    SORTED_TOGETHER: ClassVar[int] = 4
    """How many batches of examples are sorted by prompt length together. More mean less padding and less randomness.

    At 4, the padding is about a quarter of that without sorting. For edits at 1024 x 1024 with prompts of 20 to 500
    tokens, it is 1 % of the computed tokens. 16 would save another 0.7 %, but put captions of one kind into one batch.
    """

    def __init__(self, sizes: Sequence[SampleSize], seed: int, batch_size: int) -> None:
        super().__init__(sizes, seed, batch_size)
        buckets: dict[tuple[Grid, ...], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            buckets[size.grids].append(index)
        self._buckets = list(buckets.values())

    def _make_epoch(self, epoch: int, size: int) -> list[tuple[int, ...]]:
        generator = stream(self._seed, "order", epoch)
        full: list[tuple[int, ...]] = []
        rest: list[int] = []
        window = size * self.SORTED_TOGETHER
        for bucket in self._buckets:
            shuffled = self._shuffled(generator, bucket)
            cut = len(shuffled) - len(shuffled) % size
            for start in range(0, cut, window):
                together = shuffled[start : min(start + window, cut)]
                full += _cut(sorted(together, key=lambda index: self._sizes[index].text), size)
            rest += shuffled[cut:]
        full += _cut(self._topped_up(rest, size, generator), size)
        return [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]


class PackedOrder(BatchOrder):
    """Gives every process as many examples of a batch, of any shapes, as fit into `budget` tokens.

    The portions are numbered, and each batch takes the next ones, one for every process. So two processes compute in
    one batch what one process computes in two batches that it accumulates. Within an epoch all portions but one are at
    least half full, and that one is filled up from a fresh shuffle; most are nearly full. Looking up a batch takes time
    in proportion to the number of examples before it, about 2 s for a million.
    """

    OPEN: ClassVar[int] = 64
    """How many portions are filled at the same time.

    With more of them, portions get fuller, and making them is slower.
    """

    def __init__(self, sizes: Sequence[SampleSize], seed: int, budget: int) -> None:
        """Make the order. ValueError if an example is larger than the budget; `make_order` checks it with a message."""
        super().__init__(sizes, seed)
        if max(self._tokens) > budget:
            raise ValueError(f"an example has {max(self._tokens)} tokens, the budget is {budget}")
        self._budget = budget
        self._ends: list[int] = []  # per epoch, the number of the portion after its last one
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, number: int, rank: int = 0, world: int = 1) -> BatchPortion:
        """See `BatchOrder.batch`."""
        portions = [self._portion(number * world + other) for other in range(world)]
        first = sum(map(len, portions[:rank]))
        slots = tuple(range(first, first + len(portions[rank])))
        return BatchPortion(portions[rank], slots, sum(map(len, portions)))

    def first_batch(self, epoch: int, world: int = 1) -> int:
        """See `BatchOrder.first_batch`.

        With several processes, the last batch of an epoch may have portions of two epochs.
        """
        while len(self._ends) < epoch:
            self._add_epoch()
        return -(-self._ends[epoch - 1] // world) if epoch else 0

    def _add_epoch(self) -> None:
        before = self._ends[-1] if self._ends else 0
        self._ends.append(before + len(self._epoch(len(self._ends))))

    def _portion(self, number: int) -> tuple[int, ...]:
        while not self._ends or self._ends[-1] <= number:
            self._add_epoch()
        epoch = bisect_right(self._ends, number)
        begin = self._ends[epoch - 1] if epoch else 0
        return self._epoch(epoch)[number - begin]

    def _make_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """Put each example, in random order, into the fullest open portion that has room for it (best fit)."""
        generator = stream(self._seed, "order", epoch)
        portions: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # (tokens left, portion) of open portions, the fullest first
        left = []
        for index in self._shuffled(generator):
            tokens = self._tokens[index]
            place = bisect_left(rooms, (tokens, 0))
            if place < len(rooms):
                room, portion = rooms.pop(place)
            else:
                room, portion = self._budget, len(portions)
                portions.append([])
                left.append(room)
            portions[portion].append(index)
            left[portion] = room - tokens
            insort(rooms, (left[portion], portion))
            if len(rooms) > self.OPEN:
                rooms.pop(0)
        emptiest = max(range(len(portions)), key=left.__getitem__)
        if left[emptiest] > self._budget // 2:
            self._top_up(portions[emptiest], left[emptiest], generator)
        return [tuple(portions[i]) for i in torch.randperm(len(portions), generator=generator).tolist()]

    def _top_up(self, portion: list[int], room: int, generator: torch.Generator) -> None:
        there = set(portion)
        for index in self._shuffled(generator):
            if index not in there and self._tokens[index] <= room:
                portion.append(index)
                room -= self._tokens[index]


def make_order(sizes: Sequence[SampleSize], config: TrainConfig, name: Callable[[int], str]) -> BatchOrder:
    """The order that `train.batching` names. `name` gives what messages call the example of an index.

    ConfigError names the examples that are larger than the budget of a packed batch.
    """
    if config.batching == "fixed":
        return FixedOrder(sizes, config.seed, config.batch_size)
    if config.batching == "bucketed":
        return BucketedOrder(sizes, config.seed, config.batch_size)
    budget = token_budget(config)
    large = [(size.tokens, index) for index, size in enumerate(sizes) if size.tokens > budget]
    if large:
        lines = [f"{name(index)}: {tokens} tokens" for tokens, index in sorted(large, reverse=True)[:_SHOWN]]
        lines += [f"... and {len(large) - _SHOWN} more"] if len(large) > _SHOWN else []
        raise ConfigError(
            f"train.tokens_per_batch is {budget}, and {len(large)} of {len(sizes)} examples are larger:\n"
            f"{bullet_list(lines)}",
            f"Set train.tokens_per_batch to at least {max(large)[0]}, or make the pictures smaller "
            "(recipe.max_area), or leave these examples out.",
        )
    return PackedOrder(sizes, config.seed, budget)


def step_batches(order: BatchOrder, config: TrainConfig, step: int, world: int = 1) -> range:
    """The numbers of the batches that optimizer step `step` (from 0) accumulates.

    If the length of the run is set by `train.epochs`, no step has batches of two epochs: the last step of an epoch
    accumulates the batches that are left of it.
    """
    size = config.gradient_accumulation
    if config.epochs is None:
        return range(step * size, (step + 1) * size)
    for epoch in count():
        first, end = order.first_batch(epoch, world), order.first_batch(epoch + 1, world)
        steps = -(-(end - first) // size)
        if step < steps:
            return range(first + step * size, min(first + (step + 1) * size, end))
        step -= steps
    raise AssertionError("epochs do not end")


def total_steps(order: BatchOrder, config: TrainConfig, world: int = 1) -> int:
    """How many optimizer steps the run has: `max_steps`, or as many as `epochs` take if it is set."""
    if config.epochs is None:
        return config.max_steps
    ends = [order.first_batch(epoch, world) for epoch in range(config.epochs + 1)]
    return sum(-(-(end - first) // config.gradient_accumulation) for first, end in pairwise(ends))


def token_budget(config: TrainConfig) -> int:
    """How many tokens a packed batch may have. ConfigError if `train.tokens_per_batch` is not set."""
    if config.tokens_per_batch is None:
        raise ConfigError(
            "train.batching is 'packed', and train.tokens_per_batch is not set",
            "Set it to the target, reference and text tokens that fit in memory at once; "
            "`qframe data check` shows how many the examples have.",
        )
    return config.tokens_per_batch


def _cut(indices: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(indices[i : i + size]) for i in range(0, len(indices), size)]
