"""Reads entries from shards. Shard files are kept open, and an entry's checksum is verified when it is first read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from torch import Tensor

from qframe.cache.listing import ShardListing
from qframe.cache.shards import Entry, read_tensor
from qframe.errors import CacheError

_OPEN_SHARDS = 256
_MOST_RECENT = 200_000  # about 150 MB


class DamagedEntryError(CacheError):
    """The error that an entry of the cache cannot be read, or that its bytes are not those that were written.

    Attributes:
        key: The key of the damaged entry.
    """

    def __init__(self, message: str, hint: str, key: str) -> None:
        super().__init__(message, hint)
        self.key = key


class EntryReader:
    """A reader that finds entries by key in the shards of one cache, and reads their tensors. Threads may share it."""

    def __init__(self, listing: ShardListing) -> None:
        """Begin without open files. `listing` finds the shards and the entries of the cache."""
        self._listing = listing
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._verified: set[str] = set()
        self._recent: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the open shard files. A file that another thread still reads is closed when that thread is done."""
        with self._lock:
            self._open.clear()

    def locate(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return by key where each entry lies. Raises CacheError, which names the key, if a key has no entry."""
        recent = self._recent
        found = {key: recent[key] for key in keys if key in recent}
        if unknown := [key for key in keys if key not in found]:
            asked = self._listing.ask(lambda index: index.find(unknown))
            if len(asked) < len(set(unknown)):
                self._listing.refresh()
                asked = self._listing.ask(lambda index: index.find(unknown))
            for key in unknown:
                if key not in asked:
                    raise CacheError(
                        f"{self._listing.folder}: no entry {key[:16]}",
                        "Build the cache again: only entries that are missing are encoded.",
                    )
            if len(recent) + len(asked) > _MOST_RECENT:
                self._recent = {}
            self._recent.update(asked)
            found |= asked
        return found

    def read(self, entry: Entry) -> dict[str, Tensor]:
        """Read the tensors of an entry, and return them by name. They are copies that the caller may change.

        The checksums are verified when this reader reads the entry for the first time.

        Raises:
            DamagedEntryError: The entry's bytes cannot be read, or do not match a checksum that was verified.
        """
        try:
            handle = self._handle(entry.shard)
        except FileNotFoundError:
            # Another process may have rewritten the shard, without a damaged entry, since we looked; or the index is
            # damaged in the name of the shard.
            self._listing.update(always=True)
            self._recent = {}
            entry = self.locate([entry.key])[entry.key]
            handle = self._handle(entry.shard)
        try:
            verify = entry.key not in self._verified
            tensors = {t.name: read_tensor(handle.fileno(), entry, t, verify=verify) for t in entry.tensors}
        except (ValueError, OSError) as error:
            raise DamagedEntryError(
                f"{self._listing.shards / entry.shard}: entry {entry.key[:16]} is damaged: {error}",
                "Drop the entry from the cache: then it is encoded again.",
                entry.key,
            ) from error
        self._verified.add(entry.key)
        return tensors

    def read_verified(self, entry: Entry) -> dict[str, Tensor]:
        """Read the tensors of an entry as `read` does, and verify the checksums even if they were verified before."""
        self._verified.discard(entry.key)
        return self.read(entry)

    def forget(self, shard: str, keys: Iterable[str]) -> None:
        """Forget the open file of `shard`, and all that is remembered of where entries lie.

        The caller must call it after it has rewritten `shard` without the entries of `keys`.
        """
        self._verified -= set(keys)
        self._recent = {}
        with self._lock:
            self._open.pop(shard, None)

    def _handle(self, shard: str) -> BinaryIO:
        """The open file of a shard. Whoever reads it last closes it: it may be forgotten here while it is in use."""
        with self._lock:
            handle = self._open.get(shard)
            if handle is None:
                handle = (self._listing.shards / shard).open("rb", buffering=0)
                self._open[shard] = handle
                if len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
        return handle
