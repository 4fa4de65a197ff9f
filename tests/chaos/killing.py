"""A piece of work in a process of its own, killed (SIGKILL) at a moment that is chosen before."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

_WATCHED = ("open", "os.", "fcntl.", "sqlite3.")


@attrs.frozen
class Moment:
    """When to kill: before the `event`-th touch of a folder's files, or after some seconds."""

    event: int | None = None
    seconds: float | None = None

    @classmethod
    def draw(cls, generator: random.Random, *, events: int, seconds: float) -> Moment:
        """Half of them between two touches of files, where a save is torn; half at any time."""
        if generator.random() < 0.5:
            return cls(event=generator.randrange(1, events))
        return cls(seconds=generator.uniform(0, seconds))


def killed(work: Callable[[], object], moment: Moment, folder: Path) -> bool:
    """Whether the work was killed; False if it had ended before. RuntimeError if it failed by itself.

    The process is forked: it starts at once, with everything imported.
    """
    child = start(work, moment, folder)
    if moment.seconds is not None:
        time.sleep(moment.seconds)
        os.kill(child, signal.SIGKILL)
    return ended_by_kill(child)


def touches(work: Callable[[], object], folder: Path) -> int:
    """How often the work, done in a process of its own, touches the folder's files. RuntimeError if it fails."""
    reader, writer = os.pipe()

    def told() -> None:
        sys.addaudithook(_hearing(str(folder), lambda: os.write(writer, b".")))
        work()

    child = start(told, Moment(), folder)
    os.close(writer)
    with open(reader, "rb") as stream:
        count = len(stream.read())
    ended_by_kill(child)
    return count


def start(work: Callable[[], object], moment: Moment, folder: Path) -> int:
    """Begin the work in a forked process, and return its number. It kills itself if the moment is an event."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if moment.event is not None:
            sys.addaudithook(_killer(moment.event, str(folder)))
        work()
        status = 0
    except BaseException:  # noqa: BLE001 (a forked process must end here, and says why)
        traceback.print_exc()
    finally:
        os._exit(status)


def ended_by_kill(child: int) -> bool:
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError("the work failed by itself; its traceback is above")
    return False


def _killer(event: int, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    seen = itertools.count(1)
    return _hearing(folder, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(seen) == event else None)


def _hearing(folder: str, touched: Callable[[], object]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that calls `touched` before each touch of the folder's files."""

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        if name.startswith(_WATCHED) and (name.startswith("fcntl.") or any(folder in str(a) for a in arguments[:2])):
            touched()

    return hear
