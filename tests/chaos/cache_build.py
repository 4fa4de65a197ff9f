"""Kill builds of a cache at random moments, and look for entries that are lost, damaged or other than they should be.

python -m tests.chaos.cache_build --kills 50
python -m tests.chaos.cache_build --kills 50 --writer naive     must find problems, or it would not find any
python -m tests.chaos.cache_build --builders 8 --killed 3 --rounds 5

After every kill: whatever the builder had sealed is there, to the bit; and a copy of the folder, built to its end,
equals a build that was never interrupted. Exit code 1 and a list if not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load, save
from torch import Tensor

from qframe.cache import ALL, Cache, DeclaredInputs, Portion, build_cache
from tests.cache.world import MADE_BY, Loader, TinyRecipe, record
from tests.chaos.killing import Moment, ended_by_kill, killed, start

RECORDS = [record(number) for number in range(24)]
_EVENTS = 60  # about as many as an undisturbed build has

OpenCache = Callable[[Path], Any]
Values = dict[str, dict[str, Tensor]]


def open_sealing(folder: Path) -> Cache:
    """The cache, sealing after every window: the most saves, and the least to wait for."""
    return Cache(folder, shard_seconds=0.0)


class NaiveCache:
    """What not to do: files written in place, and an entry that counts as there as soon as its folder is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in dict.fromkeys(keys) if not (self.folder / key).exists()]

    def put_all(self, entries: Values, *, about: Any = None) -> None:
        for key, tensors in entries.items():
            (self.folder / key).mkdir(exist_ok=True)
            for name, tensor in tensors.items():
                (self.folder / key / name).write_bytes(save({"x": tensor}))

    def get_all(self, keys: Sequence[str]) -> list[dict[str, Tensor]]:
        return [{path.name: load(path.read_bytes())["x"] for path in (self.folder / key).iterdir()} for key in keys]

    def flush(self) -> None: ...
    def close(self) -> None: ...
    def recall_digest(self, path: str, stamp: Any) -> None: ...
    def remember_digests(self, rows: Any) -> None: ...
    def verify(self) -> list[str]:
        return []


@attrs.frozen
class Report:
    kills: int
    finished: int
    problems: tuple[str, ...]


def build(
    open_cache: OpenCache,
    folder: Path,
    *,
    ledger: Path | None = None,
    portion: Portion = ALL,
    pause: float = 0.0,
    batch: int = 2,
) -> list[str]:
    """Build, and return the keys of every entry. ledger: a file that is told each key once it is sealed."""
    loader = Loader(neighbours=0.1)  # bits that depend on who shares a batch
    encode = loader.codec.encode
    loader.codec.encode = lambda pixels, generator=None: (time.sleep(pause), encode(pixels))[1]  # type: ignore[method-assign]
    cache = open_cache(folder)
    if ledger is not None:
        _note_sealed(cache, ledger)
    examples = build_cache(
        DeclaredInputs(RECORDS, TinyRecipe()), loader, cache, MADE_BY, batch_size=batch, portion=portion
    )
    cache.close()
    return [key for keys in examples._keys for key in attrs.astuple(keys, recurse=False) if isinstance(key, str)] + [
        key for keys in examples._keys for key in keys.references
    ]


def _note_sealed(cache: Any, ledger: Path) -> None:
    put_all = cache.put_all
    handle = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noting(entries: Values, **options: Any) -> None:
        put_all(entries, **options)
        cache.flush()
        os.write(handle, "".join(f"{key}\n" for key in entries).encode())

    cache.put_all = noting


def values(open_cache: OpenCache, folder: Path, keys: Sequence[str]) -> Values:
    cache = open_cache(folder)
    found = dict(zip(keys, cache.get_all(keys), strict=True))
    cache.close()
    return found


def chaos(open_cache: OpenCache, where: Path, *, kills: int, seed: int = 0) -> Report:
    """Kill `kills` builds, going on in the same folder until it is complete, then in a new one."""
    generator = random.Random(seed)
    keys = build(open_cache, where / "calm")
    calm = values(open_cache, where / "calm", keys)
    began = time.monotonic()
    build(open_cache, where / "timed")
    seconds = 2 * (time.monotonic() - began)
    folder, ledger = where / "killed", where / "ledger"
    problems: list[str] = []
    done = finished = 0
    while done < kills:
        moment = Moment.draw(generator, events=_EVENTS, seconds=seconds)
        if not killed(partial(build, open_cache, folder, ledger=ledger), moment, folder):
            finished += 1
            problems += _differences(open_cache, folder, calm, f"uninterrupted end {finished}")
            shutil.rmtree(folder)
            ledger.unlink()
            continue
        done += 1
        if not folder.exists():
            continue  # killed before anything began
        sealed = ledger.read_text().split() if ledger.exists() else []
        problems += _differences(open_cache, folder, {k: calm[k] for k in sealed}, f"sealed before kill {done}")
        shutil.copytree(folder, where / "resumed")
        problems += _resumed(open_cache, where / "resumed", calm, f"resumed after kill {done} ({moment})")
        shutil.rmtree(where / "resumed")
    return Report(done, finished, tuple(problems))


def chaos_builders(
    open_cache: OpenCache, where: Path, *, builders: int, victims: int, rounds: int, seed: int = 0
) -> Report:
    """Several builders of one folder at once, each with its portion; some are killed, then all is built to its end."""
    generator = random.Random(seed)
    calm = values(open_cache, where / "calm", build(open_cache, where / "calm", batch=1))
    problems: list[str] = []
    kills = 0
    for turn in range(rounds):
        folder, ledger = where / f"round-{turn}", where / f"ledger-{turn}"
        portions = [Portion(number, builders) for number in range(1, builders + 1)]
        own = partial(build, open_cache, folder, ledger=ledger, pause=0.05, batch=1)
        children = [start(partial(own, portion=portion), Moment(), folder) for portion in portions]
        doomed = generator.sample(children, victims)
        for child in doomed:
            time.sleep(generator.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        kills += sum([ended_by_kill(child) for child in children])
        sealed = ledger.read_text().split() if ledger.exists() else []
        problems += _differences(open_cache, folder, {k: calm[k] for k in sealed}, f"sealed in round {turn}")
        problems += _resumed(open_cache, folder, calm, f"round {turn}, resumed", batch=1)
    return Report(kills, rounds, tuple(problems))


def _resumed(open_cache: OpenCache, folder: Path, calm: Values, when: str, *, batch: int = 2) -> list[str]:
    try:
        build(open_cache, folder, batch=batch)
    except Exception as error:  # noqa: BLE001 (whatever a broken store raises is a finding)
        return [f"{when}: the build fails with {error!r}"]
    left = [path.name for path in folder.rglob(".*.qframe-part")]
    return _differences(open_cache, folder, calm, when) + [f"{when}: {name} was left" for name in left]


def _differences(open_cache: OpenCache, folder: Path, wanted: Values, when: str) -> list[str]:
    cache = open_cache(folder)
    found = [f"{when}: {damage}" for damage in cache.verify()]
    found += [f"{when}: {key[:16]} is lost" for key in cache.missing(list(wanted))]
    for key, tensors in wanted.items():
        try:
            (got,) = cache.get_all([key])
        except Exception as error:  # noqa: BLE001 (as above)
            found.append(f"{when}: {key[:16]} cannot be read: {error!r}")
            continue
        if got.keys() != tensors.keys() or not all(torch.equal(got[name], tensors[name]) for name in got):
            found.append(f"{when}: {key[:16]} has other bits")
    cache.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=["qframe", "naive"], default="qframe")
    parser.add_argument("--builders", type=int, default=1, help="several at once, each with a portion")
    parser.add_argument("--killed", type=int, default=3, help="how many of the builders of a round are killed")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of several builders")
    given = parser.parse_args()
    open_cache: OpenCache = open_sealing if given.writer == "qframe" else NaiveCache
    began, worked = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        if given.builders > 1:
            report = chaos_builders(
                open_cache,
                Path(scratch),
                builders=given.builders,
                victims=given.killed,
                rounds=given.rounds,
                seed=given.seed,
            )
        else:
            report = chaos(open_cache, Path(scratch), kills=given.kills, seed=given.seed)
    for problem in report.problems[:20]:
        print(problem)  # noqa: T201 (a program)
    print(  # noqa: T201
        f"{report.kills} kills, {report.finished} builds that came to their end, {len(report.problems)} problems; "
        f"{time.monotonic() - began:.0f} s, {time.process_time() - worked:.0f} s of this process"
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
