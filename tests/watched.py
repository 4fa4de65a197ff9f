"""Runs a program in a process of its own with a time limit, and watches its memory and processor time (on Linux)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

_EVERY = 0.05  # seconds between two looks at a process


@attrs.frozen(kw_only=True)
class Watched:
    """What a process did and took.

    Attributes:
        status: Its exit status; negative if a signal ended it, None if it was stopped because its time was up.
        output: What it wrote, its errors among it.
        wall: Seconds that it ran.
        processor: Seconds of processor time, of all its threads and of the processes that it started and waited for.
        anonymous: The most bytes of memory that it had to itself at once: what cannot be read from a file again.
        mapped: The most bytes of mapped files that were in memory at once.
    """

    status: int | None
    output: str
    wall: float
    processor: float
    anonymous: int
    mapped: int


def run_watched(
    command: Sequence[str], *, limit: float, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Watched:
    """Run a command until it ends or its time is up, and return what it did.

    Args:
        command: The program and its arguments.
        limit: The seconds after which it is killed, with all processes of its group.
        environment: Variables to add to those of this process.
        folder: The folder to run in; by default this one.
    """
    with tempfile.TemporaryFile() as written:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        anonymous = mapped = 0
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                found = memory(process.pid)
                anonymous, mapped = max(anonymous, found[0]), max(mapped, found[1])
                time.sleep(_EVERY)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:  # Ctrl-C reaches this process alone
            stop()
            raise
        finally:
            timer.cancel()
        written.seek(0)
        return Watched(
            status=None if late.is_set() else process.returncode,
            output=written.read().decode(errors="replace"),
            wall=time.monotonic() - started,
            processor=usage.ru_utime + usage.ru_stime,
            anonymous=anonymous,
            mapped=mapped,
        )


def memory(pid: int | str = "self") -> tuple[int, int]:
    """Return the bytes of anonymous memory and of mapped files that a process has in memory; zeros if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = {name: 1024 * int(size) for name, size in re.findall(r"^(Rss\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return found.get("RssAnon", 0), found.get("RssFile", 0)
