"""Runs one case as the command line would, within limits of time and memory, and says what is wrong with its end."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import logging
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import attrs

from qframe.cli import main, report

SECONDS = 20.0
"""A case that takes longer hangs: what is read has some kilobytes. The machine may be busy with other work."""
ROOM = 4 * 2**30
"""Bytes of address space that a case may take; beyond that, an allocation fails. Threads take much of it."""
LARGE = 256 * 2**20
"""Bytes of memory that no case needs: one that uses more has believed a number in a file."""


@attrs.frozen(eq=False)
class Case:
    """Something to try.

    Attributes:
        about: What was changed, for people.
        run: Does it, and returns the exit code that the command line would end with.
        after: Looks at what was left behind, and returns what is wrong with it; None if nothing is.
        large: Bytes of memory that it never needs.
    """

    about: str
    run: Callable[[], int]
    after: Callable[[int], str | None] = lambda code: None
    large: int = LARGE


class HungError(BaseException):
    """A case took too long. Nothing that is tried may catch this."""


def command(*arguments: str | Path) -> int:
    """Run a command of qframe in this process, and return its exit code."""
    return main(["--debug", *map(str, arguments)])


def called(function: Callable[[], object]) -> int:
    """Call a function, and return the exit code that the command line would end with."""
    try:
        function()
    except Exception as error:  # noqa: BLE001 (as `main` does)
        traceback.print_exc()
        return report(error, True)
    return 0


def judged(case: Case) -> tuple[int, str | None]:
    """Run a case.

    Returns:
        Its exit code, and what is wrong with how it ended, with what it printed; None if it ended well.
    """
    shown = io.BytesIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: str | None = None
    code = 0
    with _printing_to(shown), _limits():
        try:
            code = case.run()
        except HungError:
            wrong = f"took over {SECONDS:g} s\n{traceback.format_exc()}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = f"{type(error).__name__} left the command\n{traceback.format_exc()}"
    text = shown.getvalue().decode("utf-8", "backslashreplace")
    if wrong is None and code == 1:
        wrong = "exit code 1: not foreseen"
    if wrong is None and "error: out of memory" in text:
        wrong = "out of memory"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if wrong is None and grown > case.large:
        wrong = f"used {grown / 2**20:.0f} MiB of memory"
    if wrong is None:
        seen = io.BytesIO()
        with _printing_to(seen):
            left = case.after(code)
        more = seen.getvalue().decode("utf-8", "backslashreplace")[-2000:]
        wrong = None if left is None else f"exit code {code}, and {left}\n{more}"
    gc.collect(0)
    return code, None if wrong is None else f"{case.about}\n{wrong}\n{text[-3000:]}"


@contextlib.contextmanager
def _printing_to(shown: io.BytesIO) -> Iterator[None]:
    """Collect what is printed in UTF-8, strictly on the way out, as in a terminal."""
    stream = io.TextIOWrapper(shown, encoding="utf-8", write_through=True)
    told = io.TextIOWrapper(shown, encoding="utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.raiseExceptions = True
        yield
        stream.flush()
        stream.detach()
        told.detach()


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Within this context, address space and time are limited."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise HungError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    recursion = sys.getrecursionlimit()
    former = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)  # where no Python code is reached
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        sys.setrecursionlimit(recursion)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """The bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
