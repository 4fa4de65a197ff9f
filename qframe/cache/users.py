"""Records which processes have a cache open: they share a lock on a file, and pruning must hold that lock alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qframe.errors import CacheError
from qframe.files.locks import FileLock


class FolderUsers:
    """A shared lock that marks this process as a user of a cache's folder until `close`, or until the process ends.

    A process that is forked from this one shares the lock. On a file system that has no locks or cannot be written,
    every process may use the folder, and `alone` always raises CacheError.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Take the lock, together with the other users of the folder.

        Args:
            path: The lock file, which lies in the cache's folder.
            timeout: The seconds to wait while another process is inside `alone`.

        Raises:
            CacheError: Another process was inside `alone` for longer than `timeout`.
        """
        self._path = path
        self._lock: FileLock | None = None
        with contextlib.suppress(OSError):
            self._lock = FileLock(path)
        if self._lock is not None and self._lock.take(shared=True, timeout=timeout) is False:
            self.close()
            raise CacheError(
                f"{path.parent}: another process has been pruning this cache for {timeout:.0f} s",
                "Wait until it is done, or end it.",
            )

    def close(self) -> None:
        """Release the lock: this process uses the folder no more."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which this process alone uses the folder; a process that opens the cache meanwhile waits.

        Raises:
            CacheError: Another process uses the folder, or the file system has no locks that could tell.
        """
        taken = None if self._lock is None else self._lock.take()
        if not taken or self._lock is None:
            if self._lock is not None:
                self._lock.take(shared=True)  # a failed change of a lock's mode may have lost the lock
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
            self._lock.take(shared=True)
