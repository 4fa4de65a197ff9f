"""Let the disk run full at every write of a training run, and look for checkpoints that are lost or half written.

python -m tests.chaos.full_disk                  the disk is full from the nth write on, for every n
python -m tests.chaos.full_disk --every 9        for every ninth n
python -m tests.chaos.full_disk --disk FOLDER    FOLDER lies on a small disk of its own, which really runs full:
    unshare -rm sh -c 'mount -t tmpfs -o size=8m none /mnt && python -m tests.chaos.full_disk --disk /mnt'

However far it came, the run ends with exit code 6 and one message, leaves nothing half written, and every checkpoint
is as it was published; once there is room, it goes on and ends with the bits of a run that never lacked any.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from qframe.cli import main as qframe_main
from qframe.config import dump_config
from qframe.files.storage import verify_folder
from tests.chaos.killing import Moment, start
from tests.chaos.training import STEPS, Scene, differences, outcome

_VARIANT = "accumulation, average"
_SAMPLES = ("--set", "sample.count=1", "--set", "sample.num_inference_steps=1")
_WRITING = os.O_WRONLY | os.O_RDWR
_SMALLEST = 4096


@attrs.frozen
class Report:
    """full: runs that ran out of room. problems: what is wrong after any of them."""

    full: int
    problems: tuple[str, ...]


def train(scene: Scene, output: Path, *, told: Path, before: Callable[[], object] = lambda: None) -> int:
    """Exit code of `qframe train` in a process of its own, resumed if it can be; its messages go to `told`."""
    config = scene.where / "run.toml"
    config.write_text(dump_config(scene.config(_VARIANT, output)))
    resume = ["--resume"] if any((output / "checkpoints").glob("step-*")) else []

    def work() -> None:
        torch.set_num_threads(1)
        stream = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        before()
        code = qframe_main(["train", "--config", str(config), *_SAMPLES, *resume])
        sys.stderr.flush()
        os._exit(code)

    return os.waitstatus_to_exitcode(os.waitpid(start(work, Moment(), output), 0)[1])


def full_from(write: int, folder: Path) -> None:
    """From now on, every file that is opened for writing below `folder`, from the nth on, finds the disk full."""
    seen = itertools.count(1)

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        writes = name == "os.mkdir" or (name == "open" and arguments[2] & _WRITING)
        if writes and str(folder) in str(arguments[0]) and next(seen) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(hear)


def injected(where: Path, *, every: int) -> Report:
    """The disk full from the nth write on, for n = 1, 1 + every, ..., until a run comes to its end."""
    scene = Scene.make(where)
    place = where / "disk"
    scene = attrs.evolve(scene, cache=place / "cache")
    calm = _calm(scene, place)
    problems: list[str] = []
    for number in itertools.count():
        write = 1 + number * every
        code = train(scene, place / "run", told=where / "told", before=partial(full_from, write, place))
        if code == 0:
            return Report(number, tuple(problems))
        problems += _after(scene, place, code, calm, f"full from write {write} on")
    raise AssertionError("unreachable")


def filled(where: Path, disk: Path) -> Report:
    """A disk of its own, with less and less room left, until a run does not even begin."""
    scene = attrs.evolve(Scene.make(where), cache=disk / "cache")
    calm = _calm(scene, disk)
    used = shutil.disk_usage(disk).used
    calm_run = train(scene, disk / "run", told=where / "told")
    wanted = shutil.disk_usage(disk).used - used
    shutil.rmtree(disk / "run")
    problems = [] if calm_run == 0 else ["the disk is too small for a whole run"]
    sizes = [int(wanted * sixteenth / 16) // _SMALLEST * _SMALLEST for sixteenth in range(16)]
    full = 0
    for size in sizes:
        shutil.rmtree(disk / "cache", ignore_errors=True)
        ballast = disk / "ballast"
        free = shutil.disk_usage(disk).free - size
        ballast.write_bytes(bytes(max(free, 0)))
        code = train(scene, disk / "run", told=where / "told")
        ballast.unlink()
        if code:
            full += 1
            problems += _after(scene, disk, code, calm, f"{size} bytes left")
        else:
            shutil.rmtree(disk / "run")
    return Report(full, tuple(problems))


def _calm(scene: Scene, place: Path) -> dict[str, Any]:
    place.mkdir(exist_ok=True)
    assert train(scene, place / "run", told=scene.where / "told") == 0, (scene.where / "told").read_text()
    found = outcome(place / "run")
    for path in place.iterdir():
        shutil.rmtree(path)
    return found


def _after(scene: Scene, place: Path, code: int, calm: dict[str, Any], when: str) -> Iterable[str]:
    """What is wrong after a run that found the disk full; then room is made, and it goes on."""
    told = (scene.where / "told").read_text().strip()
    if code != 6 or "error: " not in told or "Traceback" in told:
        yield f"{when}: exit code {code}, and it said {told[-300:]!r}"
    yield from (f"{when}: {path.name} was left" for path in place.rglob(".*.qframe-part"))
    checkpoints = sorted((place / "run" / "checkpoints").glob("step-*"))
    yield from (f"{when}: {line}" for folder in checkpoints for line in verify_folder(folder))
    steps = [int(folder.name.removeprefix("step-")) for folder in checkpoints]
    if steps and steps[-1] < STEPS and len(steps) < min(steps[-1], 2):
        yield f"{when}: only {steps} are left"
    if train(scene, place / "run", told=scene.where / "told") != 0:
        yield f"{when}: with room again it fails: {(scene.where / 'told').read_text()[-300:]}"
    else:
        yield from differences(outcome(place / "run"), calm, when)
    for path in place.iterdir():
        shutil.rmtree(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--disk", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other threads of OpenMP
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        report = injected(where, every=given.every) if given.disk is None else filled(where, given.disk)
    for problem in report.problems[:20]:
        print(problem)  # noqa: T201 (a program)
    seconds = time.monotonic() - began
    print(f"{report.full} runs on a full disk, {len(report.problems)} problems; {seconds:.0f} s")  # noqa: T201
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
