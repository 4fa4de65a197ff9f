"""Kill the pruning of a cache before every touch of its files, and look for entries that were to stay and are lost.

python -m tests.chaos.cache_prune
python -m tests.chaos.cache_prune naive     must find problems
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from qframe.cache import Cache
from qframe_cache_tools.prune import plan_pruning, prune
from tests.chaos.killing import Moment, killed

ENTRIES = 12


def key(number: int) -> str:
    return f"{number:064x}"


def fill(folder: Path) -> None:
    """Shards of a few entries each; one entry lies in two of them."""
    with Cache(folder, shard_bytes=200) as cache:
        for number in range(ENTRIES):
            cache.put(key(number), {"x": torch.full((16,), float(number))}, about='{"kind":"latents"}')


def prune_even(folder: Path) -> None:
    """Keep the odd entries."""
    with Cache(folder) as cache:
        prune(cache, plan_pruning(cache, keep={key(number) for number in range(1, ENTRIES, 2)}))


def prune_naively(folder: Path) -> None:
    """What not to do: the old shard goes before the new one is there."""
    with Cache(folder) as cache:
        for shard, unwanted in plan_pruning(cache, keep={key(n) for n in range(1, ENTRIES, 2)}).shards.items():
            kept = {name: cache.get(name) for name in cache.keys_of(shard) - unwanted}
            cache.drop([*unwanted, *kept])
            cache.put_all(kept)
            cache.flush()


def problems(folder: Path, when: str) -> list[str]:
    with Cache(folder) as cache:
        found = [f"{when}: {damage}" for damage in cache.verify()]
        for number in range(1, ENTRIES, 2):
            if cache.missing([key(number)]) or not (cache.get(key(number))["x"] == number).all():
                found.append(f"{when}: entry {number} is lost")
    return found


def prune_chaos(where: Path, pruned: Callable[[Path], None] = prune_even) -> tuple[int, list[str]]:
    """(kills, problems): one kill before each touch that an undisturbed pruning makes, and one pruning after it."""
    fill(where / "full")
    found: list[str] = []
    event = 0
    while True:
        event += 1
        folder = where / f"event-{event}"
        shutil.copytree(where / "full", folder)
        stopped = killed(partial(pruned, folder), Moment(event=event), folder)
        found += problems(folder, f"killed before touch {event}" if stopped else "at the end")
        pruned(folder)
        found += problems(folder, f"pruned again after touch {event}")
        with Cache(folder) as cache:
            if cache.stats().entries != ENTRIES // 2:
                found.append(f"after touch {event}: {cache.stats().entries} entries stay, expected {ENTRIES // 2}")
        shutil.rmtree(folder)
        if not stopped:
            return event - 1, found


def main() -> int:
    pruned = prune_naively if sys.argv[1:] == ["naive"] else prune_even
    with tempfile.TemporaryDirectory() as scratch:
        kills, found = prune_chaos(Path(scratch), pruned)
    print(*found[:20], f"{kills} kills, {len(found)} problems", sep="\n")  # noqa: T201 (a program)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
