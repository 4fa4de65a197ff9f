"""Which examples make a batch: random, seeded, and a function of the batch's number alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from qframe.train.streams import stream


class BatchOrder:
    """Batches of `batch_size` example indices, mostly of one shape.

    An epoch visits every example once: each shape's examples are shuffled and cut into whole batches; what is
    left over of all shapes is put together into mixed ones, and the last of these is topped up from a fresh
    shuffle. So a small bucket loses nothing, every batch has the same size, and nothing needs to be stored to
    find the place again. Mixed batches are right, not only allowed: a denoiser takes any mixture of shapes.
    """

    def __init__(self, shapes: Sequence[Hashable], batch_size: int, seed: int) -> None:
        if not shapes:
            raise ValueError("there are no examples to order")
        buckets: dict[Hashable, list[int]] = defaultdict(list)
        for index, shape in enumerate(shapes):
            buckets[shape].append(index)
        self._buckets = list(buckets.values())
        self._count = len(shapes)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self._count // self._batch_size)

    def batch(self, number: int) -> tuple[int, ...]:
        """The example indices of batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        generator = stream(self._seed, "order", epoch)
        size = self._batch_size
        whole: list[tuple[int, ...]] = []
        rest: list[int] = []
        for bucket in self._buckets:
            shuffled = [bucket[i] for i in torch.randperm(len(bucket), generator=generator).tolist()]
            cut = len(shuffled) - len(shuffled) % size
            whole += [tuple(shuffled[i : i + size]) for i in range(0, cut, size)]
            rest += shuffled[cut:]
        while len(rest) % size:
            rest += torch.randperm(self._count, generator=generator).tolist()[: size - len(rest) % size]
        whole += [tuple(rest[i : i + size]) for i in range(0, len(rest), size)]
        return [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
