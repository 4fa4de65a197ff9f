"""Counts what a cache holds from the headers of its shards, without reading a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import attrs

from qframe.cache.store import Cache
from qframe.progress import SILENT, Progress
from qframe_cache_tools.explain import parts_of

WITHOUT_FIELDS = "unknown (written before fields were kept)"


@attrs.frozen
class Amount:
    """A number of entries.

    Attributes:
        entries: How many there are.
        bytes: The bytes of their tensors.
    """

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.entries + other.entries, self.bytes + other.bytes)


@attrs.frozen(kw_only=True)
class Survey:
    """What a cache holds.

    Attributes:
        kinds: The entries by kind: "latents", "text" and "weight" (loss maps).
        shards: How many shards there are.
        bytes: The size of all shards' files.
        orphaned: Copies of entries that lie in another shard too. Two builders that encode the same entry make them.
        damaged_shards: How many shards have a header that cannot be read. Damaged tensors are found by `Cache.verify`.
        damaged_bytes: The size of these shards' files.
        oldest: When the first shard was written, in seconds since 1970; None without shards.
        newest: When the last shard was written, in seconds since 1970; None without shards.
    """

    kinds: Mapping[str, Amount]
    shards: int
    bytes: int
    orphaned: Amount
    damaged_shards: int
    damaged_bytes: int
    oldest: float | None
    newest: float | None

    @property
    def entries(self) -> int:
        """How many entries there are, copies not counted."""
        return sum(amount.entries for amount in self.kinds.values())


def survey(cache: Cache, progress: Progress = SILENT) -> Survey:
    """Count what a cache holds, from the headers of all shards."""
    kinds: dict[str, Amount] = {}
    orphaned = Amount()
    sizes: list[int] = []
    times: list[float] = []
    damaged: list[int] = []
    with progress.stage("reading headers", cache.stats().shards) as stage:
        for shard, header in cache.headers():
            stage.advance(1)
            with suppress(FileNotFoundError):
                found = cache.file_of(shard).stat()
                sizes.append(found.st_size)
                times.append(found.st_mtime)
                if header is None:
                    damaged.append(found.st_size)
            live = cache.keys_of(shard)
            for entry in () if header is None else header.entries:
                one = Amount(1, entry.size)
                if entry.key in live:
                    kind = kind_of(header.about.get(entry.key) if header else None)
                    kinds[kind] = kinds.get(kind, Amount()) + one
                else:
                    orphaned += one
    return Survey(
        kinds=dict(sorted(kinds.items())),
        shards=len(sizes),
        bytes=sum(sizes),
        orphaned=orphaned,
        damaged_shards=len(damaged),
        damaged_bytes=sum(damaged),
        oldest=min(times, default=None),
        newest=max(times, default=None),
    )


def kind_of(about: str | None) -> str:
    """Return the kind of a stored entry; `about` is what its shard says that it was made of."""
    parts = parts_of(about)
    return WITHOUT_FIELDS if parts is None else str(parts["kind"])
