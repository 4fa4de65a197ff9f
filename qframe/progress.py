"""How long work tells that it goes on: the few words that the core speaks, and a listener that hears nothing.

The command line has one that draws bars (`qframe.cli.progress`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Stage(Protocol):
    """A stretch of work with a known number of steps."""

    def advance(self, count: int = 1, **metrics: float) -> None:
        """`count` more steps are done; `metrics` (loss, ...) are shown beside rate and remaining time."""


class Progress(Protocol):
    """Hears of stages and of single remarks."""

    def stage(self, name: str, total: int, *, done: int = 0) -> AbstractContextManager[Stage]:
        """Open a stage of `total` steps, `done` of them already made (a resumed run)."""

    def note(self, text: str) -> None:
        """One line that a person should read."""


class SilentProgress:
    """Says nothing: what Python callers get unless they bring their own."""

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """A stage that nobody sees."""
        yield self

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


SILENT: Progress = SilentProgress()
