"""Remembers the digests of files between runs, so that a file that did not change is not read again.

Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Stamp = tuple[int, int, int, int]
"""A file's size in bytes, modification time and change time in ns, and inode. If a file still has the stamp that it had
before, its content is taken to be the same."""

_SETTLED = 2.0
"""The age in seconds from which a file's digest may be kept. If a younger file changes again, a file system with coarse
time stamps may leave its stamp as it was."""


class DigestStore(Protocol):
    """The interface of an object that keeps digests of files between runs, such as `qframe.cache.Cache`."""

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest that was stored for the file at `path` with this stamp, or None if there is none."""

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Store digests of files, given as rows of path, stamp and digest."""


class FileDigests:
    """A memory of the sha256 of files, so that a run reads each file at most once in order to hash it.

    With a `DigestStore`, digests of earlier runs are used too, if a file still has the stamp (size, times and inode)
    that was stored with its digest.
    """

    def __init__(self, store: DigestStore | None = None) -> None:
        """Begin without digests. `store` keeps digests between runs; None keeps none."""
        self._store = store
        self._known: dict[str, str] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._new: list[tuple[str, Stamp, str]] = []

    def recall(self, path: str | Path) -> str | None:
        """Return the digest of a file, or None if it is unknown.

        If it is unknown, the caller must read and hash the file, and pass the digest to `remember`.
        """
        path = os.path.abspath(path)
        if path not in self._known:
            # Taken before the file is read: a file that changes meanwhile has another stamp afterwards.
            stamp = self._stamps[path] = stamp_of(path)
            found = None if stamp is None or self._store is None else self._store.recall_digest(path, stamp)
            if found is None:
                return None
            self._known[path] = found
        return self._known[path]

    def remember(self, path: str | Path, digest: str) -> None:
        """Keep the digest of a file for which `recall` has returned None."""
        path = os.path.abspath(path)
        self._known[path] = digest
        stamp = self._stamps.get(path)
        # A file that was written just now could change again and keep its stamp: its digest is not kept for later runs.
        if stamp is not None and time.time_ns() - max(stamp[1], stamp[2]) > _SETTLED * 1e9:
            self._new.append((path, stamp, digest))

    def save(self) -> None:
        """Write the digests that were computed since the last call into the store, if there is one."""
        if self._store is not None and self._new:
            self._store.remember_digests(self._new)
            self._new = []


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp that a file has now; None if it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None  # reading it says what is wrong
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
