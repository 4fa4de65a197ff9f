"""Pruning: taking entries that nobody wants out of a cache, after a plan that tells what would go."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from qframe.cache.store import Cache
from qframe.progress import SILENT, Progress
from qframe_cache_tools.survey import Amount, kind_of


@attrs.frozen(eq=False, kw_only=True)
class Pruning:
    """What a pruning takes out of a cache.

    Attributes:
        shards: The keys to take out of each shard that is rewritten.
        kinds: The entries that go, by kind.
        orphaned: Copies that go because the same entry lies in another shard too.
        kept: The entries that stay.
    """

    shards: Mapping[str, frozenset[str]]
    kinds: Mapping[str, Amount]
    orphaned: Amount
    kept: Amount

    @property
    def gone(self) -> Amount:
        """The entries that are gone afterwards; copies are not counted."""
        return sum(self.kinds.values(), start=Amount())


def plan_pruning(
    cache: Cache,
    *,
    keep: Collection[str] | None = None,
    written_before: float | None = None,
    progress: Progress = SILENT,
) -> Pruning:
    """Decide which entries a pruning takes out. Only headers are read, and nothing is changed.

    An entry goes if both conditions below hold; a condition that is None always holds. If both are None, only copies
    of entries that lie in another shard go.

    Args:
        cache: The cache.
        keep: The entry's key is not among these.
        written_before: The entry's shard was written before this time, in seconds since 1970.
        progress: Is told how many headers were read.
    """
    shards: dict[str, frozenset[str]] = {}
    kinds: dict[str, Amount] = {}
    orphaned = kept = Amount()
    with progress.stage("reading headers", cache.stats().shards) as stage:
        for shard, header in cache.headers():
            stage.advance(1)
            if header is None:
                continue  # `verify` and `repair` know how to save what is whole in it
            live = cache.keys_of(shard)
            old = written_before is None or cache.file_of(shard).stat().st_mtime < written_before
            some = keep is not None or written_before is not None
            unwanted = {key for key in live if some and old and (keep is None or key not in keep)}
            copies = Amount()
            for entry in header.entries:
                one = Amount(1, entry.size)
                if entry.key in unwanted:
                    kind = kind_of(header.about.get(entry.key))
                    kinds[kind] = kinds.get(kind, Amount()) + one
                elif entry.key in live:
                    kept += one
                else:
                    copies += one
            orphaned += copies
            if unwanted or copies.entries:
                shards[shard] = frozenset(unwanted)
    return Pruning(shards=shards, kinds=dict(sorted(kinds.items())), orphaned=orphaned, kept=kept)


def prune(cache: Cache, pruning: Pruning, progress: Progress = SILENT) -> None:
    """Take the planned entries out of the cache.

    Shards are replaced one after the other, and each new one is written before the old one is deleted. If the process
    is killed, no entry that was to stay is lost, and pruning again completes it.

    Raises:
        CacheError: Another process uses the cache. Nothing was changed.
    """
    with cache.alone(), progress.stage("pruning the cache", len(pruning.shards)) as stage:
        for shard, unwanted in sorted(pruning.shards.items()):
            cache.rewrite(shard, unwanted)
            stage.advance(1)
