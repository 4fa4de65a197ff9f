"""Locks on files and folders (`flock`), which exclude other processes, and other threads that open the file themselves.

The operating system releases a lock when the process that holds it ends, also when it is killed. The locks are
advisory: a program that does not ask for the lock can still use the file. Some network file systems have no locks; each
function says what it does there.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from qframe.files.disk import disk_errors

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


def try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """Try once to lock an open file or folder, without waiting.

    Args:
        handle: The file descriptor of the open file or folder.
        shared: Whether other processes may hold the same lock in shared mode at the same time. If this descriptor holds
            the lock already, its mode is changed; if that fails, the lock may be lost.

    Returns:
        True if the lock was taken, False if another process holds it, None if this file system has no locks.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class FileLock:
    """An open lock file, whose lock this process can hold alone, or in shared mode together with other processes.

    The file is created if there is none. It is never deleted, because after a deletion two processes could hold locks
    on two different files of the same name. A process that is forked while the lock is held holds the lock too, until
    it closes the file or ends.

    Attributes:
        path: The lock file.
    """

    def __init__(self, path: Path) -> None:
        """Open the lock file at `path`, but do not take the lock. Raises OSError if it cannot be opened or created."""
        self.path = path
        self._file = path.open("a+b", buffering=0)

    def take(self, *, shared: bool = False, timeout: float = 0.0) -> bool | None:
        """Take the lock. While another process holds it, wait up to `timeout` seconds, and say so once in the log.

        Args:
            shared: Whether other processes may hold the lock in shared mode at the same time.
            timeout: The most seconds to wait.

        Returns:
            True if the lock was taken, False if another process still holds it, None if this file system has no locks.
        """
        end = time.monotonic() + timeout
        waited = False
        while (taken := try_lock(self._file.fileno(), shared=shared)) is False and time.monotonic() < end:
            if not waited:
                logger.info("%s: waiting for another process that holds this lock", self.path)
            waited = True
            time.sleep(_POLL_SECONDS)
        return taken

    def release(self) -> None:
        """Release the lock and close the file. Forked processes that shared the lock lose it too."""
        with contextlib.suppress(OSError):  # on a file system without locks there is nothing to give up
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Close the file. This releases the lock, unless a forked process still has the file open."""
        self._file.close()


@contextlib.contextmanager
def exclusive(path: Path, busy: Callable[[], Exception], *, timeout: float = 0.0) -> Iterator[None]:
    """A context in which no other process or thread holds the lock on `path` that this function takes.

    A thread that is inside must not enter again: it would wait for itself. On a file system without locks, a second
    file beside `path` marks that the lock is held.

    Args:
        path: The lock file.
        busy: Returns the exception that is raised if another process or thread still holds the lock after `timeout`.
        timeout: The most seconds to wait.

    Raises:
        ResourceError: The lock file cannot be made.
    """
    with disk_errors(path):
        lock = FileLock(path)
    try:
        taken = lock.take(timeout=timeout)
        if taken is False:
            raise busy()
        with contextlib.nullcontext() if taken else _marked(path, busy, timeout):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def _marked(path: Path, busy: Callable[[], Exception], timeout: float) -> Iterator[None]:
    mark = filelock.SoftFileLock(f"{path}.held", timeout=timeout)
    try:
        with disk_errors(Path(mark.lock_file)):
            mark.acquire()
    except filelock.Timeout as error:
        raise busy() from error
    try:
        yield
    finally:
        mark.release()
