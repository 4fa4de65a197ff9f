"""How fast cached examples are read, held against reading the same bytes of the same files and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs

from qframe.cache.examples import CachedExamples


@attrs.frozen
class Pace:
    """Seconds for an example. wall: as they pass. processor: of this process."""

    wall: float
    processor: float

    def of(self, other: Pace) -> Pace:
        """How fast this is, `other` being 1."""
        return Pace(other.wall / self.wall, other.processor / self.processor)


@attrs.frozen
class ReadPace:
    """bytes: of an example. first: with the checksums verified, as in a run's first epoch. later: in the others.

    raw: the same bytes read into memory.
    """

    examples: int
    bytes: int
    first: Pace
    later: Pace
    raw: Pace


def read_pace(examples: CachedExamples, *, repeats: int = 5) -> ReadPace:
    """The best of `repeats` rounds of raw, first and later reading, by turns, all from the system's file cache.

    The cache is opened anew for each round, so that nothing of it has been verified yet.
    """
    found: list[tuple[Pace, Pace, Pace]] = []
    for turn in range(repeats + 1):
        examples = examples.reopened()
        order = range(len(examples))
        extents = [examples.extents(index) for index in order]
        round_ = (_raw(extents), _timed(partial(_read, examples)), _timed(partial(_read, examples)))
        if turn:  # the first round fetches files from the disk
            found.append(round_)
    count = len(examples)
    size = sum(end - begin for own in extents for _, begin, end in own) // count
    raw, first, later = (_best(paces, count) for paces in zip(*found, strict=True))
    return ReadPace(count, size, first, later, raw)


def _read(examples: CachedExamples) -> None:
    for index in range(len(examples)):
        examples[index]


def _raw(extents: Sequence[Sequence[tuple[Path, int, int]]]) -> Pace:
    handles = {path: os.open(path, os.O_RDONLY) for path in {path for own in extents for path, _, _ in own}}
    try:

        def read() -> None:
            for own in extents:
                _parts = [os.pread(handles[path], end - begin, begin) for path, begin, end in own]

        return _timed(read)
    finally:
        for handle in handles.values():
            os.close(handle)


def _timed(work: Callable[[], None]) -> Pace:
    began, worked = time.perf_counter(), time.process_time()
    work()
    return Pace(time.perf_counter() - began, time.process_time() - worked)


def _best(paces: Sequence[Pace], count: int) -> Pace:
    return Pace(min(p.wall for p in paces) / count, min(p.processor for p in paces) / count)
