"""Which processes have a cache open: its users share a lock, and pruning must hold that lock alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qframe.errors import CacheError
from qframe.files.locks import FileLock


class FolderUsers:
    """Counts this process among the users of a cache's folder until `close`, or until the process ends.

    A forked process shares its parent's place. On a file system without locks, or one that cannot be written,
    everybody may use the folder, and nobody can have it alone.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Become a user of the folder.

        Args:
            path: The lock file in the folder.
            timeout: Seconds to wait for a process that has the folder alone; after that, CacheError.
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
        """Stop being a user of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, this process alone uses the folder, and whoever opens it waits. CacheError if another uses it."""
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
