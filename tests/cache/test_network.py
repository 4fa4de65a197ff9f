"""A cache that several machines share over a network: each has an index of its own, and no SQLite file is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from qframe.cache import Cache
from qframe.cache import listing as listing_module
from qframe.errors import CacheError
from qframe.files import filesystems
from tests.cache.test_store import key, same, shards, value

Machine = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Contexts in which the cache lies on a network, and the disk of the machine of this name is the local one."""
    monkeypatch.setattr(listing_module, "network_type", lambda folder: "nfs4")

    @contextmanager
    def on(name: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
            yield

    return on


def test_machines_find_each_others_entries_and_share_no_index(tmp_path: Path, machine: Machine) -> None:
    folder = tmp_path / "shared"
    with machine("a"):
        a = Cache(folder)
    with machine("b"):
        b = Cache(folder)
    a.put(key(1), value(1))
    b.put(key(2), value(2))
    b.flush()
    a.flush()
    assert same(a.get(key(2)), value(2))
    assert same(b.get(key(1)), value(1))
    a.put(key(3), value(3))
    a.flush()
    assert b.missing([key(3)]) == [key(3)]
    b.refresh()  # as `CachedExamples.missing` does when all processes have met
    assert b.missing([key(3)]) == []
    with pytest.raises(CacheError, match="no entry"):
        b.get(key(9))
    assert not list(folder.rglob("*.sqlite*"))
    for name in ("a", "b"):
        assert len(list((tmp_path / name / "qframe" / "indexes").glob("*.sqlite"))) == 1


@pytest.fixture
def doubled(tmp_path: Path, machine: Machine) -> tuple[Cache, Cache]:
    """Two machines that both wrote entry 1, each beside one of its own, and that know each other's shards."""
    caches = []
    for name in ("a", "b"):
        with machine(name):
            caches.append(Cache(tmp_path / "shared"))
    for cache, own in zip(caches, (2, 3), strict=True):
        cache.put_all({key(1): value(1), key(own): value(own)})
        cache.flush()
    for cache in caches:
        cache.refresh()
    assert len(shards(tmp_path / "shared")) == 2
    first, second = caches
    return first, second


def test_an_entry_whose_shard_another_machine_removed_is_found_in_the_other_shard(
    doubled: tuple[Cache, Cache],
) -> None:
    """The first machine finds entry 1 in its own shard, so nothing is left of the second one's without entry 3."""
    first, second = doubled
    assert same(second.get(key(1)), value(1))
    assert first.drop([key(3)]) == 1
    second._reader.forget("", ())
    second._reader.close()
    assert same(second.get(key(1)), value(1))
    with pytest.raises(CacheError, match="no entry"):
        second.get(key(3))


def test_two_machines_that_rewrite_shards_do_not_both_leave_out_what_the_other_has(
    tmp_path: Path, machine: Machine, doubled: tuple[Cache, Cache]
) -> None:
    first, second = doubled
    assert second.drop([key(2)]) == 1
    assert first.drop([key(3)]) == 1
    for cache in doubled:
        assert same(cache.get(key(1)), value(1))
    with machine("c"), Cache(tmp_path / "shared") as third:
        assert same(third.get(key(1)), value(1))
        assert third.missing([key(2), key(3)]) == [key(2), key(3)]


def test_an_index_of_an_older_version_in_the_shared_folder_is_left_alone(tmp_path: Path, machine: Machine) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "index.sqlite").write_bytes(b"torn by two machines")
    with machine("a"), Cache(folder) as cache:
        cache.put(key(1), value(1))
    assert (folder / "index.sqlite").read_bytes() == b"torn by two machines"


def test_a_home_on_the_network_gives_way_to_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(filesystems.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(filesystems, "network_type", lambda path: "nfs4" if "home" in str(path) else None)
    found = filesystems.local_folder("indexes")
    assert found.is_dir()
    assert found.is_relative_to(tmp_path / "tmp")


def test_on_a_local_disk_the_index_lies_beside_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "network_type", lambda folder: None)
    with Cache(tmp_path) as cache:
        cache.put(key(1), value(1))
    assert (tmp_path / "index.sqlite").exists()
