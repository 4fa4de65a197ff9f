"""Measures the time and the memory that it takes to open the index of a cache with very many entries."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from qframe.cache.index import LISTED, Index
from qframe.cache.shards import Entry, StoredTensor
from qframe.cache.store import Cache

_EMBEDS, _SLOTS = 2 * 1400 * 3584, 8 * 1400
"""The bytes of both tensors of an entry: 1,400 vectors of the text encoder in bfloat16, and as many whole numbers."""
_SHARD = 500
"""The number of entries in a shard. With pictures of 1024 x 1024 such a shard would have 256 MB."""


@attrs.frozen
class Opened:
    """The time and the memory that it took to open the index of a cache.

    Attributes:
        wall: Seconds on the clock for opening the index, without any look-up.
        processor: Seconds of processor time for opening the index and looking 1,000 entries up.
        bytes: By how many bytes the peak memory of the process grew while it did both.
    """

    wall: float
    processor: float
    bytes: int


def open_index(folder: Path, entries: int) -> Opened:
    """Write an index with this many entries, and measure in a new process what it takes to open that index.

    Args:
        folder: An empty or missing folder for the cache whose index is written.
        entries: The number of entries in the index.
    """
    fill_index(folder, entries)
    command = [sys.executable, "-m", __name__, str(folder), str(entries)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Opened(**json.loads(done.stdout))


def fill_index(folder: Path, entries: int) -> None:
    """Write the index of a cache with this many made-up entries of two tensors each into `folder`.

    The files of tensors (shards) that the index names are empty, because the benchmark opens none of them.
    """
    (folder / "shards").mkdir(parents=True)
    index = Index(folder / "index.sqlite")
    for first in range(0, entries, _SHARD):
        shard = f"{first:032x}.safetensors"
        (folder / "shards" / shard).touch()
        index.add(shard, _entries(shard, range(first, min(first + _SHARD, entries))))
    index.set_note(LISTED, str((folder / "shards").stat().st_mtime_ns))
    index.close()


def _entries(shard: str, numbers: range) -> Iterator[Entry]:
    for place, number in enumerate(numbers):
        begin = 4096 + (_EMBEDS + _SLOTS) * place
        middle = begin + _EMBEDS
        tensors = (
            StoredTensor("embeds", "BF16", (1400, 3584), begin, middle, f"{number:032x}"),
            StoredTensor("extra.slots", "I64", (1400,), middle, middle + _SLOTS, f"{number:032x}"),
        )
        yield Entry(f"{number:064x}", shard, tensors)


def _measure(folder: Path, entries: int) -> Opened:
    """Open the index in this process, and look 1,000 entries up."""
    before, began, worked = _memory(), time.perf_counter(), time.process_time()
    cache = Cache(folder)
    opened = time.perf_counter() - began
    wanted = [f"{number:064x}" for number in range(0, entries, max(entries // 1000, 1))]
    if cache.missing(wanted):
        raise RuntimeError(f"the index in {folder} does not know its own entries")
    cache.locate(wanted)
    return Opened(opened, time.process_time() - worked, _memory() - before)


def _memory() -> int:
    """The most bytes of memory that this process has had so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(attrs.asdict(_measure(Path(sys.argv[1]), int(sys.argv[2])))))
