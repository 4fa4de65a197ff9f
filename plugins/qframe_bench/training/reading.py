"""Measures how fast examples are read from a cache, compared with reading the same bytes of the same files directly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import torch

from qframe.cache.examples import CachedExamples
from qframe.cache.keys import ExampleKeys
from qframe.cache.store import Cache
from qframe_bench.measuring import Seconds

PUBLISHED_SIZES = {"1024 x 1024": (128, 1400, 16), "512 x 512": (64, 400, 48), "256 x 256": (32, 150, 96)}
"""The sizes that encoded examples of a published edit model have, by the size of their pictures in pixels.

Each value has three numbers: the height and width of the latents, the number of tokens that the text encoder makes of
the prompt together with its picture, and how many examples the benchmark reads.
"""


def published_size_examples(folder: Path, side: int, tokens: int, count: int) -> CachedExamples:
    """Fill a cache with random examples in bfloat16, and return these examples, which are read from the cache.

    Each example has a target, a reference and an encoded caption.

    Args:
        folder: The folder that the cache is created in.
        side: The height and width of the latents of target and reference, which have 16 channels.
        tokens: The number of tokens of a caption.
        count: The number of examples.
    """
    keys = []
    generator = torch.Generator().manual_seed(0)
    with Cache(folder) as cache:
        for number in range(count):
            target, reference, text = (f"{3 * number + part:064x}" for part in range(3))
            for key in (target, reference):
                cache.put(key, {"latents": torch.randn(16, side, side, generator=generator).bfloat16()})
            cache.put(text, {"embeds": torch.randn(tokens, 3584, generator=generator).bfloat16()})
            keys.append(ExampleKeys(target, (reference,), text, None, None))
    return CachedExamples(Cache(folder), [str(number) for number in range(count)], keys)


@attrs.frozen
class ReadPace:
    """The time that reading one example takes, averaged over all examples, in the fastest of several rounds.

    Attributes:
        examples: How many examples were read.
        bytes: The mean number of bytes of an example.
        first: Time of the first reading of an example, which verifies its checksums, as in the first epoch of a run.
        later: Time of a later reading of the same example, which verifies no checksum.
        raw: Time of reading the same bytes from the same files without the cache.
    """

    examples: int
    bytes: int
    first: Seconds
    later: Seconds
    raw: Seconds


def read_pace(examples: CachedExamples, *, repeats: int = 5) -> ReadPace:
    """Read all examples in three ways, in several rounds, and return the fastest round of each way.

    In each round the bytes of all examples are read without the cache, then all examples are read from the cache for
    the first time, and then once more. Each round opens the cache anew, so that no checksum has been verified yet when
    the first reading begins.

    Args:
        examples: The examples to read.
        repeats: How many rounds count. A round before them fetches the files into the system's page cache.
    """
    found: list[tuple[Seconds, Seconds, Seconds]] = []
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


def _raw(extents: Sequence[Sequence[tuple[Path, int, int]]]) -> Seconds:
    handles = {path: os.open(path, os.O_RDONLY) for path in {path for own in extents for path, _, _ in own}}
    try:

        def read() -> None:
            for own in extents:
                _parts = [os.pread(handles[path], end - begin, begin) for path, begin, end in own]

        return _timed(read)
    finally:
        for handle in handles.values():
            os.close(handle)


def _timed(work: Callable[[], None]) -> Seconds:
    began, worked = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - began, time.process_time() - worked)


def _best(paces: Sequence[Seconds], count: int) -> Seconds:
    return Seconds(min(p.wall for p in paces) / count, min(p.processor for p in paces) / count)
