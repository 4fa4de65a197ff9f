"""SIGINT and SIGTERM: the first asks the loop to save and stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from qframe.errors import QframeError


class Stopped(QframeError):
    """The run was asked to stop, and saved its state first. Exit code 128 + signal, as shells count."""

    def __init__(self, number: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + number  # type: ignore[misc]  # one class, two signals


class StopSignals:
    """Inside this context `received` is the first signal's number, or None; a second one has its usual effect."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._listen()
        return self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, a signal has its usual effect at once: what must not be lost is saved."""
        self._restore()
        try:
            yield
        finally:
            if self.received is None:
                self._listen()

    def _listen(self) -> None:
        # Only the main thread may set handlers; elsewhere (a notebook's thread) the usual effect stays.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
