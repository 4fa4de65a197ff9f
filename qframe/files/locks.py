"""Locks between processes, on a file or folder. They exclude threads too, where each thread takes a lock of its own.

The operating system releases a lock when the process that holds it ends, also when it is killed. Locks are advisory
(`flock`): they bind only those who ask for them. Some network file systems have none; each caller says what follows.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


def try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """Try once to lock an open file or folder, without waiting.

    Args:
        handle: Its file descriptor.
        shared: Whether other processes may hold the same lock in shared mode meanwhile. A lock that this descriptor
            holds already changes its mode; if that fails, the lock may be lost.

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
    """A lock file that this process has open, to hold it alone or together with others.

    The file is created where there is none, and never deleted: whoever deleted it would let two processes hold two
    files of the same name. A process that is forked while the lock is held holds it too, until it closes it or ends.
    """

    def __init__(self, path: Path) -> None:
        """Open the lock file at `path`. OSError if it can be neither opened nor created."""
        self.path = path
        self._file = path.open("a+b", buffering=0)

    def take(self, *, shared: bool = False, timeout: float = 0.0) -> bool | None:
        """Take the lock, and wait up to `timeout` seconds while another process holds it.

        Arguments and result are those of `try_lock`. The log says once for what this process waits.
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
        """Give the lock up, also for forked processes that share it, and close the file."""
        with contextlib.suppress(OSError):  # on a file system without locks there is nothing to give up
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Close the file. The lock stays held as long as a forked process has it open."""
        self._file.close()


@contextlib.contextmanager
def exclusive(path: Path, busy: Callable[[], Exception], *, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path` alone inside. A thread that holds it already must not ask for it again.

    Where the file system has no locks, a second file beside `path` marks that the lock is held.

    Args:
        path: The lock file.
        busy: Makes the exception that is raised if another process still holds the lock after `timeout`.
        timeout: Seconds to wait.
    """
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
        mark.acquire()
    except filelock.Timeout as error:
        raise busy() from error
    try:
        yield
    finally:
        mark.release()
