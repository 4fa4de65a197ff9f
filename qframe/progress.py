"""How the core reports the progress of long work, and a reporter that ignores it.

The command line brings a reporter that draws progress bars (`qframe.cli.progress`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


def duration(seconds: float) -> str:
    """A duration in words, for example "0.4 s", "12 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


class Stage(Protocol):
    """A stage of work, with a number of steps that is known when it begins."""

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Report that more steps are done.

        Args:
            count: How many steps.
            metrics: Numbers such as the loss, which are shown beside rate and remaining time.
        """


class Progress(Protocol):
    """Receives the progress of work: stages, and single lines of text."""

    def stage(self, name: str, total: int, *, done: int = 0) -> AbstractContextManager[Stage]:
        """Begin a stage, which lasts as long as the returned context.

        Args:
            name: What is done in the stage.
            total: The number of steps.
            done: How many of these steps were made before, for example by the run that is resumed.
        """

    def note(self, text: str) -> None:
        """Report one line that a person should read."""


class SilentProgress:
    """Ignores all progress. Python callers get this one unless they bring their own."""

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """A stage whose steps are ignored."""
        yield self

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Ignore the steps."""

    def note(self, text: str) -> None:
        """Ignore the line."""


SILENT: Progress = SilentProgress()
