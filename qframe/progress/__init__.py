"""The interface by which long work reports its progress, and an implementation that ignores every report.

`qframe.progress.shown` has those that draw bars and print lines. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


def duration(seconds: float) -> str:
    """Write a number of seconds for people, for example "0.4 s", "12 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


class Stage(Protocol):
    """A stage of long work (such as encoding or training), whose number of steps is known when it begins."""

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Report that more steps of the stage are done.

        Args:
            count: How many steps were done since the last report.
            metrics: Numbers such as the loss, which are shown beside the speed and the remaining time.
        """


class Progress(Protocol):
    """A receiver of reports from long work: of stages with steps, and of single lines of text."""

    def stage(self, name: str, total: int, *, done: int = 0) -> AbstractContextManager[Stage]:
        """Return a context in which a stage of work is reported; it yields the stage, which ends with the context.

        Args:
            name: What is done in the stage, as people read it.
            total: The number of steps.
            done: How many of these steps were done earlier, for example before a run was interrupted.
        """

    def note(self, text: str) -> None:
        """Report one line that a person should read."""


class SilentProgress:
    """A `Progress` that ignores every report. Functions use it unless the caller passes another one."""

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """Return a context with a stage whose steps are ignored."""
        yield self

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Ignore the steps."""

    def note(self, text: str) -> None:
        """Ignore the line."""


SILENT: Progress = SilentProgress()
