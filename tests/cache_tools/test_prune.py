"""What a cache holds is counted, and what nobody wants is taken out: first told, then done, and only by one alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from qframe.cache import Cache, DeclaredInputs, build_cache
from qframe.cache.shards import make_shard
from qframe.errors import CacheError
from qframe.interfaces import Record
from qframe_cache_tools.prune import plan_pruning, prune
from qframe_cache_tools.survey import WITHOUT_FIELDS, Amount, survey
from tests.cache.world import MADE_BY, Loader, TinyRecipe, record

RECORDS = [record(number) for number in range(6)]


def build(folder: Path, records: list[Record] = RECORDS) -> list[str]:
    with Cache(folder, shard_bytes=2000) as cache:
        examples = build_cache(DeclaredInputs(records, TinyRecipe()), Loader(), cache, MADE_BY)
    return [
        k
        for keys in examples._keys
        for k in (keys.target, *keys.references, keys.conditioning, keys.unconditional, keys.loss_map)
        if k
    ]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def copy_of_all(folder: Path) -> None:
    """A second shard with everything, as another builder of the same entries leaves it."""
    with Cache(folder) as cache:
        keys = [key for shard, _ in cache.headers() for key in cache.keys_of(shard)]
        name, data = make_shard(dict(zip(keys, cache.get_all(keys), strict=True)), {})
    (folder / "shards" / name).write_bytes(data)


def test_entries_are_counted_by_kind_with_bytes_and_age(tmp_path: Path) -> None:
    keys = set(build(tmp_path))
    with Cache(tmp_path) as cache:
        found = survey(cache)
        assert found.entries == cache.stats().entries == len(keys)
        assert found.bytes == cache.stats().bytes
        sizes = [cache.locate([key])[key].size for key in keys]
    assert {kind: amount.entries for kind, amount in found.kinds.items()} == {"latents": 11, "text": 11, "weight": 6}
    assert sum(amount.bytes for amount in found.kinds.values()) == sum(sizes)
    assert found.orphaned == Amount()
    assert found.oldest is not None
    assert found.newest is not None
    assert time.time() - 600 < found.oldest <= found.newest <= time.time() + 1


def test_copies_damaged_headers_and_entries_without_fields_are_counted(tmp_path: Path) -> None:
    keys = set(build(tmp_path))
    copy_of_all(tmp_path)
    with Cache(tmp_path) as cache:
        before = survey(cache)
        assert before.orphaned.entries == len(keys)
        cache.put("0" * 64, {"x": torch.ones(3)})
    first = min((tmp_path / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(first.read_bytes())
    data[40] ^= 1
    first.write_bytes(data)
    with Cache(tmp_path) as cache:
        found = survey(cache)
    assert found.kinds[WITHOUT_FIELDS] == Amount(1, 12)
    assert (found.damaged_shards, found.damaged_bytes) == (1, len(data))


def test_what_no_configuration_needs_goes_and_the_rest_stays_to_the_bit(tmp_path: Path) -> None:
    build(tmp_path)
    keep = set(build(tmp_path, RECORDS[:2]))
    with Cache(tmp_path) as cache:
        before = dict(zip(keep, cache.get_all(list(keep)), strict=True))
        entries = cache.stats().entries
        size = cache.stats().bytes
        plan = plan_pruning(cache, keep=keep)
        assert plan.gone.entries == entries - len(keep)
        assert plan.kept.entries == len(keep)
        prune(cache, plan)
        assert cache.stats().entries == len(keep)
        assert cache.stats().bytes < size
        assert cache.verify() == []
        for key, tensors in zip(keep, cache.get_all(list(keep)), strict=True):
            assert all(torch.equal(tensors[name], before[key][name]) for name in before[key])
        assert plan_pruning(cache, keep=keep).shards == {}
    (tmp_path / "index.sqlite").unlink()
    with Cache(tmp_path) as cache:
        assert cache.stats().entries == len(keep)


def test_planning_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    before = snapshot(tmp_path)
    with Cache(tmp_path) as cache:
        assert plan_pruning(cache, keep=set()).gone.entries == cache.stats().entries
    assert snapshot(tmp_path) == before


def test_only_what_was_written_before_goes_and_what_stays_keeps_its_age(tmp_path: Path) -> None:
    old = set(build(tmp_path, RECORDS[:3]))
    for path in (tmp_path / "shards").iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    new = set(build(tmp_path)) - old
    with Cache(tmp_path) as cache:
        assert plan_pruning(cache, written_before=1_500_000_000).gone.entries == 0
        assert plan_pruning(cache, written_before=1_700_000_000).gone.entries == len(old)
        kept = set(list(old)[:4])
        prune(cache, plan_pruning(cache, keep=kept, written_before=1_700_000_000))
        assert {key for shard, _ in cache.headers() for key in cache.keys_of(shard)} == new | kept
        assert plan_pruning(cache, written_before=1_700_000_000).gone.entries == len(kept)


def test_copies_go_with_a_pruning_and_alone(tmp_path: Path) -> None:
    keys = set(build(tmp_path))
    copy_of_all(tmp_path)
    with Cache(tmp_path) as cache:
        plan = plan_pruning(cache)
        assert (plan.gone.entries, plan.orphaned.entries) == (0, len(keys))
        prune(cache, plan)
        assert survey(cache).orphaned == Amount()
        assert cache.missing(keys) == []
        assert cache.verify() == []


def test_nothing_goes_while_another_uses_the_cache(tmp_path: Path) -> None:
    build(tmp_path)
    before = snapshot(tmp_path)
    with Cache(tmp_path) as reader, Cache(tmp_path) as cache:
        plan = plan_pruning(cache, keep=set())
        with pytest.raises(CacheError, match="another process is using this cache"):
            prune(cache, plan)
        assert snapshot(tmp_path) == before
        assert reader.stats().entries > 0
        with pytest.raises(CacheError, match="using"):
            prune(reader, plan)  # the first refusal did not lose the lock of who was refused
    with Cache(tmp_path) as cache:
        prune(cache, plan)
        assert cache.stats().entries == 0


def test_whoever_opens_a_cache_waits_until_it_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr("qframe.cache.store.LOCK_SECONDS", 0.2)
    with Cache(tmp_path) as cache, cache.alone(), pytest.raises(CacheError, match="pruning this cache"):
        Cache(tmp_path)
    Cache(tmp_path).close()
