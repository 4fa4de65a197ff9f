"""Shows progress as bars in a terminal, and as a line every few seconds elsewhere, for example in a log file.

In a notebook the bars are drawn below the cell. All show the rate, the remaining time and the metrics. For programs,
progress can be written as lines of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from qframe.progress import SILENT, Progress, Stage, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

EVERY_SECONDS = 5.0
_JSON_EVERY = 1.0
_REMEMBERED = 3600.0  # seconds over which rich estimates the speed; it shows no rate for steps that take longer


CHOICES = ("auto", "bar", "lines", "json", "none")
"""How a command can show its progress (`--progress`)."""
_META = f"{__name__}.chosen"


def choose_progress(kind: str) -> None:
    """Let the command that runs now show its progress in this way, one of `CHOICES`."""
    click.get_current_context().meta[_META] = kind


def chosen_progress() -> str:
    """Return how the command that runs now is to show its progress; "auto" outside of a command."""
    context = click.get_current_context(silent=True)
    return "auto" if context is None else context.meta.get(_META, "auto")


def terminal_progress(*, as_json: bool = False) -> Progress:
    """Return what shows progress as the user chose, by default as bars if stdout is a terminal, else as lines.

    Args:
        as_json: Whether the command writes its results as JSON to stdout, where no progress may stand then.
    """
    kind = chosen_progress()
    if kind == "none" or (as_json and kind != "json"):
        return SILENT
    if kind == "json":
        return JsonProgress()
    return BarProgress() if kind == "bar" or (kind == "auto" and sys.stdout.isatty()) else LineProgress()


def default_progress() -> Progress:
    """Return what Python code shows if it names no progress: bars in a terminal or a notebook, else nothing.

    A program whose output goes into a file or to another program, such as a server, is not disturbed.
    """
    return BarProgress() if sys.stdout.isatty() or _in_notebook() else SILENT


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows what is displayed below its cells."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def rate(per_second: float) -> str:
    """Format a rate as steps per second, or as seconds per step if a step takes longer than a second."""
    if per_second <= 0:
        return "-"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def _shown(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value if isinstance(value, int) else f'{value:.4g}'}" for name, value in metrics.items())


class BarProgress:
    """Shows one bar for each stage; a stage within another has a second bar below, which is removed at its end."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._outer: Display | None = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        if self._outer is not None:
            task = self._outer.add_task(name, total=total, completed=done, rate="", metrics="")
            try:
                yield _Bar(self._outer, task)
            finally:
                self._outer.remove_task(task)
            return
        with self._display() as display:
            self._outer = display
            task = display.add_task(name, total=total, completed=done, rate="", metrics="")
            try:
                yield _Bar(display, task)
            finally:
                self._outer = None

    def _display(self) -> Display:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}"),
        )
        return Bars(*columns, console=self._console, speed_estimate_period=_REMEMBERED)


class _Bar:
    def __init__(self, display: Display, task: TaskID) -> None:
        self._display, self._task = display, task

    def advance(self, count: int = 1, **metrics: float) -> None:
        self._display.advance(self._task, count)
        speed = next(task for task in self._display.tasks if task.id == self._task).speed
        self._display.update(self._task, rate=rate(speed or 0.0), metrics=_shown(metrics))


class LineProgress:
    """Prints a line every few seconds while a stage runs, and one when it ends."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        self._every = every_seconds

    def note(self, text: str) -> None:
        click.echo(text)

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        lines = _Lines(name, total, done, self._every)
        yield lines
        lines.end()


class _Lines:
    def __init__(self, name: str, total: int, done: int, every: float) -> None:
        self._name, self._total, self._first, self._done, self._every = name, total, done, done, every
        self._metrics: dict[str, float] = {}
        self._began = self._last = time.monotonic()

    def advance(self, count: int = 1, **metrics: float) -> None:
        self._done += count
        self._metrics = metrics
        now = time.monotonic()
        if now - self._last >= self._every and self._done < self._total:
            self._last = now
            speed = (self._done - self._first) / (now - self._began)
            left = duration((self._total - self._done) / speed) if speed > 0 else "?"
            self._say(f"{rate(speed)}, {left} left")

    def end(self) -> None:
        took = time.monotonic() - self._began
        speed = (self._done - self._first) / took if took > 0 else 0.0
        self._say(f"{rate(speed)}, took {duration(took)}")

    def _say(self, timing: str) -> None:
        metrics = _shown(self._metrics)
        click.echo(f"{self._name} {self._done}/{self._total}, {timing}" + (f", {metrics}" if metrics else ""))


class JsonProgress:
    """Writes progress to stderr, one JSON object a line, for a program that shows it. stdout has results alone.

    The key `event` is "start", "progress", "end" or "note"; docs/reference/cli.md lists the other keys. While a stage
    runs, it writes at most one line a second.
    """

    def __init__(self, every_seconds: float = _JSON_EVERY) -> None:
        self._every = every_seconds

    def note(self, text: str) -> None:
        _say_json({"event": "note", "text": text})

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        stage = _JsonStage(name, total, done, self._every)
        stage.say("start")
        yield stage
        stage.say("end")


class _JsonStage:
    def __init__(self, name: str, total: int, done: int, every: float) -> None:
        self._name, self._total, self._first, self._done, self._every = name, total, done, done, every
        self._metrics: dict[str, float] = {}
        self._began = time.monotonic()
        self._last = -math.inf

    def advance(self, count: int = 1, **metrics: float) -> None:
        self._done += count
        self._metrics = metrics
        if time.monotonic() - self._last >= self._every:
            self.say("progress")

    def say(self, event: str) -> None:
        now = time.monotonic()
        seconds = now - self._began
        self._last = now if event == "progress" else self._last
        made = self._done - self._first
        left = None if made == 0 or event == "end" else (self._total - self._done) * seconds / made
        about = {"event": event, "stage": self._name, "done": self._done, "total": self._total, "seconds": seconds}
        metrics = {name: value if math.isfinite(value) else None for name, value in self._metrics.items()}
        _say_json({**about, "seconds_left": left, "metrics": metrics})


def _say_json(line: dict[str, Any]) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}
    click.echo(json.dumps(rounded), err=True)
