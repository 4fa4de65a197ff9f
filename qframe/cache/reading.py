"""Reading entries out of shards: open files are kept, and each entry's checksum is verified once."""

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
    """The bytes of an entry are not those that were written.

    Attributes:
        key: The entry's key.
    """

    def __init__(self, message: str, hint: str, key: str) -> None:
        super().__init__(message, hint)
        self.key = key


class EntryReader:
    """Finds entries by key and reads their tensors. Threads may share one reader."""

    def __init__(self, listing: ShardListing) -> None:
        self._listing = listing
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._verified: set[str] = set()
        self._recent: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the shards, as soon as nobody reads them any more."""
        with self._lock:
            self._open.clear()

    def locate(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return where the entries of `keys` lie. CacheError names a key that has no entry."""
        recent = self._recent
        found = {key: recent[key] for key in keys if key in recent}
        if unknown := [key for key in keys if key not in found]:
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
        """Return the tensors of an entry by name, in memory of their own.

        DamagedEntryError if its bytes cannot be read, or are read for the first time and do not match the checksum.
        """
        try:
            handle = self._handle(entry.shard)
        except FileNotFoundError:
            # Another process may have rewritten the shard, without a damaged entry, since we looked.
            self._listing.update()
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
        """Read an entry as `read` does, and verify its checksum even if it was verified before."""
        self._verified.discard(entry.key)
        return self.read(entry)

    def forget(self, shard: str, keys: Iterable[str]) -> None:
        """Forget where entries lie, and the open file of `shard`: it was rewritten without the entries of `keys`."""
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
