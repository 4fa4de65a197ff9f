"""Kill one of two processes that save a sharded state together, and look for a checkpoint that is torn.

python -m tests.chaos.sharded --kills 30
python -m tests.chaos.sharded --kills 30 --saver naive     must find problems, or it would not find any

Every value of the state is the number of its step. After each kill: every checkpoint that can be seen is as it was
published; the newest is read by one process, and all of its values are its step; and two processes go on from it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from qframe.errors import QframeError
from qframe.files.storage import verify_folder
from qframe.train.distributed import joined
from qframe.train.sharding import local_part
from qframe.train.state import TrainingState, find_checkpoint, restore, save_checkpoint
from tests.chaos.killing import Moment, start, touches
from tests.train.conftest import toy_example
from tests.train.processes import free_port
from tests.train.sharded import FULL, ShardedScene, full_scene

_SAVES = 6
_EXAMPLES = [toy_example(number) for number in range(2)]


def save_on(run: Path, rank: int, port: int) -> None:
    """What one of the two processes does: go on from the newest checkpoint, if any, and save some more."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()}, MASTER_ADDR="127.0.0.1")
    with joined() as processes:
        processes.connect(torch.device("cpu"), timeout=30)
        state = ShardedScene(run, _EXAMPLES, FULL).state
        if any((run / "checkpoints").glob("step-*")):
            restore(Path(processes.agree(lambda: str(find_checkpoint(run, "latest")))), state)
            assert wrong_values(state) == []
        for step in range(state.step + 1, state.step + 1 + _SAVES):
            set_values(state, step)
            save_checkpoint(run, state, config="", about={}, keep=2, processes=processes)
            processes.meet()


def set_values(state: TrainingState, step: int) -> None:
    """Make every value of the state the number of its step."""
    state.step = step
    assert state.average is not None
    with torch.no_grad():
        for tensor in (*state.parameters.values(), *state.average.values.values()):
            local_part(tensor).fill_(step)


def wrong_values(state: TrainingState) -> list[str]:
    """The names of tensors that hold anything but the number of the state's step."""
    assert state.average is not None
    tensors = {**state.parameters, **{f"average {name}": value for name, value in state.average.values.items()}}
    return [name for name, tensor in tensors.items() if not (local_part(tensor) == state.step).all()]


def both(run: Path, moments: Mapping[int, Moment]) -> int | None:
    """Let two processes save until one of them is killed, and kill the other one. The rank that died; None if none."""
    port = free_port()
    children = {start(partial(save_on, run, rank, port), moments.get(rank, Moment()), run): rank for rank in range(2)}
    timers = []
    for child, rank in children.items():
        if (seconds := moments.get(rank, Moment()).seconds) is not None:
            timers.append(threading.Timer(seconds, _kill, [child]))
            timers[-1].start()
    ended, status = os.wait()
    (other,) = children.keys() - {ended}
    if status:
        time.sleep(0.1)  # of two that ended at once, either may be reported first
        _kill(other)  # as the launcher does
    _, other_status = os.waitpid(other, 0)
    for timer in timers:
        timer.cancel()
    if os.WIFSIGNALED(status):
        return children[ended]
    if os.WIFSIGNALED(other_status):
        return children[other]
    if status or other_status:
        raise RuntimeError("a process failed by itself; its traceback is above")
    return None


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def problems_of(run: Path, when: str) -> list[str]:
    """What is wrong with the checkpoints of a run, as a process sees them that resumes it alone."""
    seen = sorted((run / "checkpoints").glob("step-*"))
    found = [f"{when}: {line}" for folder in seen for line in verify_folder(folder)]
    if seen and not found:
        state = full_scene(run.parent, _EXAMPLES).state
        try:
            restore(find_checkpoint(run, "latest"), state)
        except QframeError as error:
            return [f"{when}: {error.message}"]
        found = [f"{when}: {name} is not {state.step}" for name in wrong_values(state)]
    return found


def chaos(where: Path, *, kills: int, seed: int = 0) -> tuple[int, list[str]]:
    """(kills inside a save, problems): kill `kills` times, each time one of the two processes."""
    generator = random.Random(seed)
    run = where / "run"
    events = touches(partial(both, where / "calm", {}), where / "calm")
    began = time.monotonic()
    both(where / "timed", {})
    seconds = time.monotonic() - began
    problems: list[str] = []
    done = in_saves = 0
    while done < kills:
        moment = Moment.draw(generator, events=max(events, 8), seconds=seconds)
        died = both(run, {generator.randrange(2): moment})
        if died is None:
            shutil.rmtree(run, ignore_errors=True)
            continue
        done += 1
        in_saves += any((run / "checkpoints").glob(".step-*"))
        problems += problems_of(run, f"kill {done} of process {died}, {moment}")
        if problems:
            break
    return in_saves, problems


def naive_publish(target: Path, write: Callable[[Path], Mapping[str, str]], *, expected_bytes: int = 0) -> None:
    """What not to do: write the files where they will be seen, and the manifest over whatever is there."""
    from qframe.files import storage

    target.mkdir(parents=True)
    write(target)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        storage.publish_folder(
            Path(scratch) / "whole", lambda draft: shutil.copytree(target, draft, dirs_exist_ok=True)
        )
        shutil.copy(Path(scratch) / "whole" / storage.MANIFEST, target)


def _copy(source: Path, draft: Path) -> None:
    shutil.copytree(source, draft, dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--saver", choices=["qframe", "naive"], default="qframe")
    given = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # a forked process has no other threads of OpenMP
    naive = mock.patch("qframe.train.state.publish_folder", naive_publish) if given.saver == "naive" else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, naive:
        in_saves, problems = chaos(Path(scratch), kills=given.kills, seed=given.seed)
    for problem in problems[:20]:
        print(problem)  # noqa: T201 (a program)
    seconds = time.monotonic() - began
    print(f"{given.kills} kills, {in_saves} of them inside a save, {len(problems)} problems; {seconds:.0f} s")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
