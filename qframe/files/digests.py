"""Digests of files, remembered between runs, so that a file that did not change is not read again. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Stamp = tuple[int, int, int, int]
"""Size in bytes, modification time and change time in ns, and inode of a file. Equal stamps mean equal content."""

_SETTLED = 2.0
"""A file that is at least this many seconds old gets a new time stamp when it changes: few clocks are coarser."""


class DigestStore(Protocol):
    """Keeps digests of files between runs. A cache is one."""

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest kept of the file at `path`; None if there is none, or the file had another stamp then."""

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Keep digests of files, given as rows of path, stamp and digest."""


class FileDigests:
    """Remembers the sha256 of files, so that each is read at most once in a run.

    A digest that a store kept from an earlier run counts as long as the file still has the stamp it had then.
    """

    def __init__(self, store: DigestStore | None = None) -> None:
        self._store = store
        self._known: dict[str, str] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._new: list[tuple[str, Stamp, str]] = []

    def recall(self, path: str | Path) -> str | None:
        """Return the digest of a file, or None: then the caller must read the file and tell `remember` its digest."""
        path = os.path.abspath(path)
        if path not in self._known:
            # Taken before the file is read: a file that changes meanwhile has another stamp afterwards.
            stamp = self._stamps[path] = _stamp(path)
            found = None if stamp is None or self._store is None else self._store.recall_digest(path, stamp)
            if found is None:
                return None
            self._known[path] = found
        return self._known[path]

    def remember(self, path: str | Path, digest: str) -> None:
        """Keep the digest of a file that `recall` did not know."""
        path = os.path.abspath(path)
        self._known[path] = digest
        stamp = self._stamps.get(path)
        # A file that was written just now could change again and keep its stamp: its digest is not kept for later runs.
        if stamp is not None and time.time_ns() - max(stamp[1], stamp[2]) > _SETTLED * 1e9:
            self._new.append((path, stamp, digest))

    def save(self) -> None:
        """Give the digests of this run to the store, if there is one."""
        if self._store is not None and self._new:
            self._store.remember_digests(self._new)
            self._new = []


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None  # reading it says what is wrong
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
