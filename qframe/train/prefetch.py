"""Makes values ahead in one thread, so that the GPU does not wait while the CPU prepares the next batch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

import attrs

_T = TypeVar("_T")


@attrs.frozen
class _Made(Generic[_T]):
    """A value that the thread made."""

    value: _T


@attrs.frozen
class _Ended:
    """The end of the values: the last one was made, or an error was raised."""

    error: BaseException | None


@contextmanager
def made_ahead(values: Iterable[_T], ahead: int) -> Iterator[Iterator[_T]]:
    """A context that yields the same values in the same order, made by a thread while the caller uses earlier ones.

    An error that is raised while a value is made is raised when the caller asks for that value, itself and not wrapped.
    When the context is left, for whatever reason, the thread finishes the value that it is making and ends.

    Args:
        values: Makes the values. They are asked for in the thread alone.
        ahead: The most values that wait for the caller. With 0 there is no thread: each value is made when it is asked
            for.
    """
    if ahead == 0:
        yield iter(values)
        return
    made: SimpleQueue[_Made[_T] | _Ended] = SimpleQueue()
    room = threading.Semaphore(ahead)
    left = threading.Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            remaining = iter(values)
            while True:
                room.acquire()
                if left.is_set():
                    return
                try:
                    made.put(_Made(next(remaining)))
                except StopIteration:
                    return
        except BaseException as raised:  # noqa: BLE001 - the caller's thread raises it
            error = raised
        finally:
            made.put(_Ended(error))

    thread = threading.Thread(target=make, name="qframe batches", daemon=True)
    thread.start()
    try:
        yield _taken(made, room)
    finally:
        left.set()
        room.release()
        thread.join()


def _taken(made: SimpleQueue[_Made[_T] | _Ended], room: threading.Semaphore) -> Iterator[_T]:
    while True:
        found = made.get()
        if isinstance(found, _Ended):
            if found.error is not None:
                raise found.error
            return
        room.release()
        yield found.value
