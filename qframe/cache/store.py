"""The store itself: tensors by key, in a folder. It knows nothing of what keys and tensors mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from torch import Tensor

from qframe.cache.index import Index
from qframe.cache.listing import LOCK_SECONDS, ShardListing
from qframe.cache.reading import EntryReader
from qframe.cache.repair import Damage, find_damage, rewrite_shard
from qframe.cache.shards import Entry, Header, storable
from qframe.cache.users import FolderUsers
from qframe.cache.writing import PendingEntries, write_shard
from qframe.errors import QframeError
from qframe.files.digests import Stamp
from qframe.progress import SILENT, Progress

logger = logging.getLogger(__name__)


@attrs.frozen
class CacheStats:
    """How much a cache holds.

    Attributes:
        entries: How many entries can be found.
        shards: How many shards have a readable header.
        bytes: The size of these shards' files together.
    """

    entries: int
    shards: int
    bytes: int


class Cache:
    """A folder of entries; an entry is a few named tensors under one key.

    Entries are gathered in memory and written as shards, files that are never changed. Any number of processes may
    write and read one folder at once.

    Attributes:
        folder: The cache's folder.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = 256_000_000, shard_seconds: float = 30.0) -> None:
        """Open the cache in `folder`, or begin a new one there.

        Args:
            folder: The cache's folder.
            shard_bytes: The most bytes of tensors that a shard is to hold.
            shard_seconds: A shard is written at the latest when its first entry is that old and another one is put
                into the cache. A builder that is killed loses no more than this.

        Raises:
            CacheError: Another process has been pruning or changing the cache for too long.
        """
        self.folder = folder
        self._listing = ShardListing(folder)
        self._reader = EntryReader(self._listing)
        self._pending = PendingEntries(shard_bytes)
        self._shard_seconds = shard_seconds
        self._users = FolderUsers(folder / ".users", timeout=LOCK_SECONDS)
        self._listing.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except QframeError as second:
            logger.warning("the last entries were not written: %s", second.message)

    def close(self) -> None:
        """Write the entries that were gathered, and close all files."""
        try:
            self.flush()
        finally:
            self._listing.close()
            self._users.close()
            self._reader.close()

    # -- writing ----------------------------------------------------------------------------------------------

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those of `keys` that have no entry, in order, each once."""
        unique = [key for key in dict.fromkeys(keys) if key not in self._pending.tensors]
        known = self._listing.ask(lambda index: index.known(unique))
        return [key for key in unique if key not in known]

    def put(self, key: str, tensors: Mapping[str, Tensor], *, about: str = "") -> None:
        """Put one entry into the cache, as `put_all` does."""
        self.put_all({key: tensors}, about={key: about})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]], *, about: Mapping[str, str] | None = None) -> None:
        """Put entries into the cache that belong in one shard. An entry that the cache has already stays as it is.

        Args:
            entries: Tensors by key and name.
            about: In JSON, what an entry was made of, by key. Only people and `qframe cache explain` read it.

        Raises:
            ResourceError: The disk is full. The entries stay in memory, and the next `flush` tries again.
        """
        wanted = self.missing(entries)
        new = {key: {name: storable(tensor) for name, tensor in entries[key].items()} for key in wanted}
        if self._pending.tensors and not self._pending.has_room(new.values()):
            self.flush()
        self._pending.add(new, {key: about[key] for key in wanted if about and about.get(key)})
        if time.monotonic() - self._pending.since > self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write all entries that were gathered, as shards. ResourceError if the disk is full."""
        while self._pending.tensors:
            keys = self._pending.first_shard()
            values = {key: self._pending.tensors[key] for key in keys}
            name, entries = write_shard(self._listing.shards, values, self._pending.about)
            self._listing.ask(lambda index, name=name, entries=entries: index.add(name, entries))  # type: ignore[misc]
            self._pending.remove(keys)

    # -- reading ----------------------------------------------------------------------------------------------

    def get(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of an entry by name, in memory of their own.

        The checksum is verified when this object reads the entry for the first time.

        Raises:
            DamagedEntryError: The entry's bytes are not those that were written.
            CacheError: There is no such entry.
        """
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the tensors of several entries, in the order of `keys`. Errors are those of `get`."""
        pending = self._pending.tensors
        entries = self.locate([key for key in dict.fromkeys(keys) if key not in pending])
        return [
            {name: tensor.clone() for name, tensor in pending[key].items()}
            if key in pending
            else self._reader.read(entries[key])
            for key in keys
        ]

    def locate(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return where entries lie, with names, dtypes and shapes of their tensors, without reading a tensor.

        CacheError names a key that has no entry in a shard.
        """
        return self._reader.locate(keys)

    def stats(self) -> CacheStats:
        """Count the entries, and the shards that can be read."""
        shards = [name for name, damage in self._listing.ask(Index.shards).items() if damage is None]
        sizes = [path.stat().st_size for name in shards if (path := self.file_of(name)).exists()]
        return CacheStats(self._listing.ask(Index.count), len(sizes), sum(sizes))

    def headers(self) -> Iterator[tuple[str, Header | None]]:
        """Yield the name and the header of every shard; the header is None if it cannot be read."""
        return self._listing.headers()

    def keys_of(self, shard: str) -> set[str]:
        """Return the keys of the entries that the cache reads from `shard`.

        A shard may also hold copies of entries that the cache reads from another shard; their keys are left out.
        """
        return self._listing.ask(lambda index: index.keys_of(shard))

    def file_of(self, shard: str) -> Path:
        """Return the path of a shard."""
        return self._listing.shards / shard

    # -- damage, and entries that no data set needs --------------------------------------------------------------

    def verify(self, progress: Progress = SILENT) -> list[Damage]:
        """Read every entry, compare checksums, and list what is damaged. Nothing is changed."""
        return find_damage(self._listing, self._reader, progress)

    def repair(self, damages: Iterable[Damage]) -> None:
        """Take the damaged entries that `verify` listed out of the cache. The next build encodes them again."""
        damages = list(damages)
        for shard in {damage.shard for damage in damages}:
            self.rewrite(shard, {d.key for d in damages if d.shard == shard and d.key is not None})

    def drop(self, keys: Iterable[str]) -> int:
        """Take the entries of `keys` out of the cache, and return how many there were."""
        with self._listing.exclusive():
            found = self._listing.ask(lambda index: index.find(list(dict.fromkeys(keys))))
            for shard in {entry.shard for entry in found.values()}:
                self.rewrite(shard, {entry.key for entry in found.values() if entry.shard == shard})
        return len(found)

    def rewrite(self, shard: str, without: Collection[str]) -> None:
        """Replace `shard` by one that holds its undamaged entries, but not those whose keys are in `without`.

        The new shard also leaves out copies of entries that the cache reads from other shards. A process that is
        killed in between leaves the old shard, the new one, or both.
        """
        rewrite_shard(self._listing, self._reader, shard, without)

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other process has this cache open, and whoever opens it waits. CacheError if another has it."""
        return self._users.alone()

    # -- digests of the data set's files ------------------------------------------------------------------------

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """See `DigestStore`."""
        return self._listing.ask(lambda index: index.recall_digest(path, stamp))

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """See `DigestStore`."""
        self._listing.ask(lambda index: index.remember_digests(rows))
