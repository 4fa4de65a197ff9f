"""Stores named tensors under keys in a folder, without regard to what the keys and the tensors mean."""

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
    """The numbers of entries and shards in a cache, and their size.

    Attributes:
        entries: The number of entries that can be found by their keys.
        shards: The number of shards with a readable header.
        bytes: The size of the files of these shards together, in bytes.
    """

    entries: int
    shards: int
    bytes: int


class Cache:
    """A folder that stores entries; an entry is a few named tensors under one key.

    Entries that are put into the cache are first collected in memory, and then written together as a shard, a file that
    is never changed afterwards. Any number of processes may write and read one folder at once. A cache is a context
    manager that closes itself.

    Attributes:
        folder: The cache's folder.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = 256_000_000, shard_seconds: float = 30.0) -> None:
        """Open the cache in `folder`, or create an empty one there.

        Args:
            folder: The cache's folder.
            shard_bytes: The most bytes of tensors that one shard should hold; a larger entry gets a shard of its own.
            shard_seconds: `put` and `put_all` write all collected entries when the oldest of them is older than this
                many seconds. A process that is killed loses the entries that it has not written yet.

        Raises:
            CacheError: Another process has been pruning or changing the cache for 900 seconds.
            ResourceError: There is no such folder, and it cannot be made.
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
        except (QframeError, OSError) as second:
            logger.warning("the last entries were not written: %s", second)

    @property
    def writable(self) -> bool:
        """Whether entries can be put into the cache. One whose folder cannot be written to can still be read."""
        return self._listing.writable

    def close(self) -> None:
        """Write the entries that are collected in memory, and close all files of the cache."""
        try:
            self.flush()
        finally:
            self._listing.close()
            self._users.close()
            self._reader.close()

    # -- writing ----------------------------------------------------------------------------------------------

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those of `keys` that have no entry in the cache, in the order of `keys`, without repeats."""
        unique = [key for key in dict.fromkeys(keys) if key not in self._pending.tensors]
        known = self._listing.ask(lambda index: index.known(unique))
        return [key for key in unique if key not in known]

    def refresh(self) -> None:
        """Learn of entries that other machines have written since, where this machine has an index of its own."""
        self._listing.refresh()

    def put(self, key: str, tensors: Mapping[str, Tensor], *, about: str = "") -> None:
        """Put one entry into the cache. If the cache has an entry of this key already, that entry stays.

        Args:
            key: The entry's key, 64 hexadecimal digits.
            tensors: The entry's tensors, by name.
            about: The JSON of the values that the key was hashed from. It is stored for `qframe cache explain`.

        Raises:
            ResourceError: The disk is full. Entries that were collected before stay in memory, and the next `flush`
                tries to write them again.
        """
        self.put_all({key: tensors}, about={key: about})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]], *, about: Mapping[str, str] | None = None) -> None:
        """Put several entries into the cache, in one shard if they fit. An entry that the cache has already stays.

        Args:
            entries: The tensors of each entry, by the entry's key and the tensor's name.
            about: By key, the JSON of the values that the key was hashed from. It is stored for
                `qframe cache explain`.

        Raises:
            ResourceError: The disk is full. Entries that were collected before stay in memory, and the next `flush`
                tries to write them again.
        """
        wanted = self.missing(entries)
        new = {key: {name: storable(tensor) for name, tensor in entries[key].items()} for key in wanted}
        if self._pending.tensors and not self._pending.has_room(new.values()):
            self.flush()
        self._pending.add(new, {key: about[key] for key in wanted if about and about.get(key)})
        if time.monotonic() - self._pending.since > self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write all entries that are collected in memory, as shards. Raises ResourceError if the disk is full."""
        while self._pending.tensors:
            keys = self._pending.first_shard()
            values = {key: self._pending.tensors[key] for key in keys}
            name, entries = write_shard(self._listing.shards, values, self._pending.about)
            self._listing.ask(lambda index, name=name, entries=entries: index.add(name, entries))  # type: ignore[misc]
            self._pending.remove(keys)

    # -- reading ----------------------------------------------------------------------------------------------

    def get(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of an entry by name. They are copies that the caller may change.

        The checksums are verified when this `Cache` object reads the entry for the first time.

        Raises:
            DamagedEntryError: The entry's bytes cannot be read, or are not those that were written.
            CacheError: The cache has no entry of this key.
        """
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return for each of `keys` the tensors of its entry by name, in order. Raises the same errors as `get`."""
        pending = self._pending.tensors
        entries = self.locate([key for key in dict.fromkeys(keys) if key not in pending])
        return [
            {name: tensor.clone() for name, tensor in pending[key].items()}
            if key in pending
            else self._reader.read(entries[key])
            for key in keys
        ]

    def locate(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return by key where each entry lies, with the names, dtypes and shapes of its tensors. No tensor is read.

        Raises:
            CacheError: A key has no entry in a shard, for example because its entry is not written yet; the message
                names the key.
        """
        return self._reader.locate(keys)

    def stats(self) -> CacheStats:
        """Return the numbers of entries and of readable shards, and the size of these shards."""
        shards = [name for name, damage in self._listing.ask(Index.shards).items() if damage is None]
        sizes = [path.stat().st_size for name in shards if (path := self.file_of(name)).exists()]
        return CacheStats(self._listing.ask(Index.count), len(sizes), sum(sizes))

    def headers(self) -> Iterator[tuple[str, Header | None]]:
        """Yield the file name and the header of every shard; the header is None if it is damaged or unreadable."""
        return self._listing.headers()

    def keys_of(self, shard: str) -> set[str]:
        """Return the keys of the entries that the cache reads from `shard`.

        A shard may also hold copies of entries that the cache reads from another shard; their keys are left out.
        """
        return self._listing.ask(lambda index: index.keys_of(shard))

    def file_of(self, shard: str) -> Path:
        """Return the path of the shard with this file name."""
        return self._listing.shards / shard

    # -- damage, and entries that no data set needs --------------------------------------------------------------

    def verify(self, progress: Progress = SILENT) -> list[Damage]:
        """Read every entry of the cache, verify all checksums, and return what is damaged. No file is changed."""
        return find_damage(self._listing, self._reader, progress)

    def repair(self, damages: Iterable[Damage]) -> None:
        """Remove the damaged entries that `verify` returned from the cache. The next build encodes them again."""
        damages = list(damages)
        for shard in {damage.shard for damage in damages}:
            self.rewrite(shard, {d.key for d in damages if d.shard == shard and d.key is not None})

    def drop(self, keys: Iterable[str]) -> int:
        """Remove the entries of `keys` from the cache, and return how many of them it had. Unknown keys are ignored."""
        with self._listing.exclusive():
            found = self._listing.ask(lambda index: index.find(list(dict.fromkeys(keys))))
            for shard in {entry.shard for entry in found.values()}:
                self.rewrite(shard, {entry.key for entry in found.values() if entry.shard == shard})
        return len(found)

    def rewrite(self, shard: str, without: Collection[str]) -> None:
        """Replace a shard by a new one without damaged entries and without the entries whose keys are in `without`.

        The new shard also leaves out copies of entries that the cache reads from other shards. If the process is
        killed meanwhile, the old shard, the new one, or both are there.
        """
        rewrite_shard(self._listing, self._reader, shard, without)

    def alone(self) -> AbstractContextManager[None]:
        """A context in which no other process has this cache open; a process that opens it meanwhile waits.

        Raises:
            CacheError: Another process has the cache open, or the file system has no locks that could tell.
        """
        return self._users.alone()

    # -- digests of the data set's files ------------------------------------------------------------------------

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest that is stored for the file at `path` if it was stored with the same stamp, else None."""
        return self._listing.ask(lambda index: index.recall_digest(path, stamp))

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Store digests of files in the cache's index, given as rows of path, stamp and digest."""
        self._listing.ask(lambda index: index.remember_digests(rows))
