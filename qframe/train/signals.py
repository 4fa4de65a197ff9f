"""Handling of SIGINT and SIGTERM: the first signal asks the loop to save and stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from qframe.errors import QframeError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a run to stop."""


class Stopped(QframeError):
    """Raised when a signal stopped the run, after its state was saved. The exit code is 128 + signal, as in shells."""

    def __init__(self, number: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + number  # type: ignore[misc]  # one class, two signals


class StopSignals:
    """A context that notes the first SIGINT or SIGTERM instead of letting it end the process.

    A second signal has its usual effect, which is to end the process at once.

    Attributes:
        received: The number of the first signal; None while none has come.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._listen()
        return self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which a signal ends the process at once. Enter it only when everything that matters is saved."""
        self._restore()
        try:
            yield
        finally:
            if self.received is None:
                self._listen()

    def _listen(self) -> None:
        # Only the main thread may set handlers; elsewhere (a notebook's thread) the usual effect stays.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
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
