"""Open the index of a cache with a million entries: seconds and memory, each in a process of its own.

python -m tests.bench.cache_index
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ENTRIES = 1_000_000
SHARDS = 2_000

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from qframe.cache import Cache

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, began, worked = memory(), time.perf_counter(), time.process_time()
cache = Cache(Path(sys.argv[1]))
opened = time.perf_counter() - began
wanted = [f"{number:064x}" for number in range(0, int(sys.argv[2]), int(sys.argv[2]) // 1000)]
assert cache.missing(wanted) == []
cache.locate(wanted)
print(json.dumps({
    "opened": opened,
    "with 1,000 look-ups": time.perf_counter() - began,
    "processor": time.process_time() - worked,
    "memory": memory() - before,
}))
"""


def fill(folder: Path, entries: int, shards: int) -> int:
    """An index that knows `entries` entries of two tensors; its size. The shards are empty files: none is opened."""
    from qframe.cache.index import Index
    from qframe.cache.shards import Entry, StoredTensor
    from qframe.cache.store import _LISTED

    (folder / "shards").mkdir(parents=True)
    index = Index(folder / "index.sqlite")
    each = entries // shards

    def of(shard: str, first: int) -> Iterator[Entry]:
        for number in range(first, first + each):
            begin = 4096 + 640_000 * (number - first)
            tensors = (
                StoredTensor("embeds", "BF16", (1400, 3584), begin, begin + 600_000, f"{number:032x}"),
                StoredTensor("extra.slots", "I64", (1400,), begin + 600_000, begin + 640_000, f"{number:032x}"),
            )
            yield Entry(f"{number:064x}", shard, tensors)

    for place in range(shards):
        shard = f"{place:032x}.safetensors"
        (folder / "shards" / shard).touch()
        index.add(shard, of(shard, place * each))
    index.set_note(_LISTED, str((folder / "shards").stat().st_mtime_ns))
    index.close()
    return (folder / "index.sqlite").stat().st_size


def measure(folder: Path, entries: int = ENTRIES, shards: int = SHARDS) -> dict[str, float]:
    size = fill(folder, entries, shards)
    command = [sys.executable, "-c", MEASURE, str(folder), str(entries)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "file": size}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch))
    print(  # noqa: T201 (a program)
        f"{ENTRIES:,} entries in {SHARDS:,} shards, {found['file'] / 1e6:.0f} MB on disk: opened in "
        f"{1000 * found['opened']:.1f} ms, with 1,000 look-ups {1000 * found['with 1,000 look-ups']:.0f} ms "
        f"({1000 * found['processor']:.0f} ms of processor), {found['memory'] / 1e6:.0f} MB of memory"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
