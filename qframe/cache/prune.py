"""Taking out what nobody wants any more: first a plan that changes nothing, then its execution."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from qframe.cache.store import Cache
from qframe.cache.survey import Amount, kind_of
from qframe.progress import SILENT, Progress


@attrs.frozen(eq=False, kw_only=True)
class Pruning:
    """What would go.

    shards: per shard that is written anew, the keys to take out of it. kinds: what goes, by kind. orphaned: copies
    that go because the entry lies elsewhere too. kept: what stays.
    """

    shards: Mapping[str, frozenset[str]]
    kinds: Mapping[str, Amount]
    orphaned: Amount
    kept: Amount

    @property
    def gone(self) -> Amount:
        """Entries that are gone afterwards."""
        return sum(self.kinds.values(), start=Amount())


def plan_pruning(
    cache: Cache,
    *,
    keep: Collection[str] | None = None,
    written_before: float | None = None,
    progress: Progress = SILENT,
) -> Pruning:
    """What goes of the entries that are not in `keep` and were written before a time (seconds since 1970).

    Either may be None: then the other alone decides. With both None only copies go. Reads headers alone.
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
    """Do what the plan says. CacheError, and nothing is changed, if another process uses the cache.

    Shards are replaced one by one, the new one written before the old one goes: however this ends, no entry that was
    to stay is lost, and pruning again ends it.
    """
    with cache.alone(), progress.stage("pruning the cache", len(pruning.shards)) as stage:
        for shard, unwanted in sorted(pruning.shards.items()):
            cache.rewrite(shard, unwanted)
            stage.advance(1)
