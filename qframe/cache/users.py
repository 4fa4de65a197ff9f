"""Who has a cache open: a lock that its users share, and that whoever takes whole entries out must have alone."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from qframe.errors import CacheError

_POLL_SECONDS = 0.05


class FolderUsers:
    """This process among the users of a folder, until `close` (or its end, however it ends).

    A forked process shares its parent's place. On a file system without locks, or one that cannot be written,
    everybody may use the folder and nobody has it alone.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Wait up to `timeout` seconds for one who has the folder alone; then CacheError."""
        self._path = path
        self._handle = None
        with contextlib.suppress(OSError):
            self._handle = path.open("a+b")
        end = time.monotonic() + timeout
        while self._take(fcntl.LOCK_SH) is False:
            if time.monotonic() > end:
                raise CacheError(
                    f"{path.parent}: another process has been pruning this cache for {timeout:.0f} s",
                    "Wait until it is done, or end it.",
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, nobody else uses the folder: who comes, waits. CacheError if somebody uses it."""
        taken = self._take(fcntl.LOCK_EX)
        if not taken:
            self._take(fcntl.LOCK_SH)  # a failed change of a lock may have lost it
            raise CacheError(
                f"{self._path.parent}: another process is using this cache"
                if taken is False
                else f"{self._path.parent}: this file system cannot tell whether the cache is in use",
                "Wait until every build and training that reads it has ended."
                if taken is False
                else "Prune it where it lies on a disk with locks, or delete the whole folder: it is made again.",
            )
        try:
            yield
        finally:
            self._take(fcntl.LOCK_SH)

    def _take(self, kind: int) -> bool | None:
        """True: taken. False: held by another. None: there are no locks here."""
        if self._handle is None:
            return None
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True
