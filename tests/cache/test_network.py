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


def test_an_entry_that_moved_on_another_machine_is_found_again(tmp_path: Path, machine: Machine) -> None:
    """Both wrote it: each finds its own copy, and a machine that rewrites shards keeps at least one."""
    folder = tmp_path / "shared"
    with machine("a"):
        a = Cache(folder)
    with machine("b"):
        b = Cache(folder)
    for cache, own in ((a, 2), (b, 3)):
        cache.put_all({key(1): value(1), key(own): value(own)})
        cache.flush()
    assert len(shards(folder)) == 2
    assert same(a.get(key(1)), value(1))
    assert same(b.get(key(1)), value(1))
    assert a.drop([key(2)]) == 1  # rewrites the shard that a reads
    assert b.drop([key(3)]) == 1  # and the one that b reads
    for cache in (a, b):
        assert same(cache.get(key(1)), value(1))
    with machine("c"), Cache(folder) as c:
        assert same(c.get(key(1)), value(1))
        assert sorted(c.missing([key(2), key(3)])) == [key(2), key(3)]


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
