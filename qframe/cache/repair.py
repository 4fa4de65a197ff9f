"""Finds damaged entries in a cache, and rewrites shards without damaged or unwanted entries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping

import attrs
from torch import Tensor

from qframe.cache.index import Index
from qframe.cache.listing import ShardListing
from qframe.cache.reading import DamagedEntryError, EntryReader
from qframe.cache.shards import Entry, read_header
from qframe.cache.writing import write_shard
from qframe.progress import Progress


@attrs.frozen
class Damage:
    """A damaged entry, or a shard with a damaged header, that `Cache.verify` has found.

    Attributes:
        shard: The file name of the shard.
        key: The key of the damaged entry; None if the shard's header is damaged.
        reason: A text that tells people what is wrong.
    """

    shard: str
    key: str | None
    reason: str

    def __str__(self) -> str:
        what = "header" if self.key is None else f"entry {self.key[:16]}"
        return f"{self.shard}: {what}: {self.reason}"


def find_damage(listing: ShardListing, reader: EntryReader, progress: Progress) -> list[Damage]:
    """Read every entry of every shard, verify all checksums, and return what is damaged. No file is changed."""
    damages: list[Damage] = []
    listing.ask(Index.check)
    listing.update(always=True)
    shards = listing.ask(Index.shards)
    with progress.stage("verifying the cache", len(shards)) as stage:
        for shard, damage in sorted(shards.items()):
            damages += [Damage(shard, None, damage)] if damage else _damage_in(shard, listing, reader)
            stage.advance(1)
    return damages


def _damage_in(shard: str, listing: ShardListing, reader: EntryReader) -> Iterator[Damage]:
    try:
        read_header(listing.shards / shard)
    except FileNotFoundError:
        return  # another process has rewritten the shard meanwhile
    except (ValueError, OSError) as error:
        yield Damage(shard, None, str(error))
    for entry in listing.ask(lambda index: index.entries_of(shard)):
        try:
            reader.read_verified(entry)
        except DamagedEntryError as error:
            yield Damage(shard, entry.key, str(error.__cause__))


def rewrite_shard(listing: ShardListing, reader: EntryReader, shard: str, without: Collection[str]) -> None:
    """Replace a shard by a new one without damaged entries and without the entries whose keys are in `without`.

    The new shard also leaves out copies of entries that the index finds in other shards. If no entry is left, the old
    shard is deleted and no new one is written. The new file keeps the modification time of the old one. If the process
    is killed meanwhile, the old shard, the new one, or both are there, and every entry that was to be kept is in one.

    Args:
        listing: The shards of the cache and their index.
        reader: Reads the entries that are kept.
        shard: The file name of the shard.
        without: The keys of entries that are to be removed.
    """
    with listing.exclusive():
        listing.refresh()
        path = listing.shards / shard
        kept: dict[str, dict[str, Tensor]] = {}
        for entry in listing.ask(lambda index: index.entries_of(shard)):
            if entry.key not in without:
                with contextlib.suppress(DamagedEntryError):  # it is left out like the others
                    kept[entry.key] = reader.read_verified(entry)
        about: Mapping[str, str] = {}
        with contextlib.suppress(ValueError, OSError):
            about = read_header(path).about
        new = None
        entries: tuple[Entry, ...] = ()
        if kept:
            new, entries = write_shard(listing.shards, kept, about)
            with contextlib.suppress(FileNotFoundError):
                old = path.stat()
                os.utime(listing.shards / new, ns=(old.st_atime_ns, old.st_mtime_ns))
        listing.ask(lambda index: index.replace(shard, new, entries))
        reader.forget(shard, without)
        if new != shard:
            path.unlink(missing_ok=True)
