"""Digests of files, remembered between runs: a file that did not change is not read again. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Stamp = tuple[int, int, int, int]
"""Size, modification time, change time (ns) and inode of a file: equal ones mean the same content."""

_SETTLED = 2.0
"""Seconds after which a file's time stamp surely changes with its content (coarser clocks than this are rare)."""


class DigestStore(Protocol):
    """Keeps digests of files between runs."""

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """The digest of a file, if it still has this stamp."""

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Keep digests of files as they are now."""


class FileDigests:
    """The sha256 of files, each read at most once: from this run, else from the store as long as its stamp holds."""

    def __init__(self, store: DigestStore | None = None) -> None:
        self._store = store
        self._known: dict[str, str] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._new: list[tuple[str, Stamp, str]] = []

    def recall(self, path: str | Path) -> str | None:
        """The digest of a file, or None: then it must be read, and `remember` be told."""
        path = os.path.abspath(path)
        if path not in self._known:
            # Taken before the file is read: one that changes meanwhile has another stamp afterwards.
            stamp = self._stamps[path] = _stamp(path)
            found = None if stamp is None or self._store is None else self._store.recall_digest(path, stamp)
            if found is None:
                return None
            self._known[path] = found
        return self._known[path]

    def remember(self, path: str | Path, digest: str) -> None:
        """The digest of a file that `recall` did not know."""
        path = os.path.abspath(path)
        self._known[path] = digest
        stamp = self._stamps.get(path)
        # A file written just now could change again without a change of its stamp.
        if stamp is not None and time.time_ns() - max(stamp[1], stamp[2]) > _SETTLED * 1e9:
            self._new.append((path, stamp, digest))

    def save(self) -> None:
        """Hand what was read to the store."""
        if self._store is not None and self._new:
            self._store.remember_digests(self._new)
            self._new = []


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None  # reading it says what is wrong
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
