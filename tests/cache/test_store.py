"""The store: what was put comes back to the bit, or is known to be damaged."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from qframe.cache import Cache, DamagedEntryError
from qframe.cache.shards import read_header
from qframe.errors import CacheError, ResourceError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def key(number: int) -> str:
    return f"{number:064x}"


def value(number: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(4, 3 + number % 3, 5, generator=generator).mul(50).to(dtype),
        "extra.slots": torch.arange(number % 4),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def filled(folder: Path, count: int = 12, **options: float) -> Cache:
    with Cache(folder, **options) as cache:  # type: ignore[arg-type]
        for number in range(count):
            cache.put(key(number), value(number), about=f'{{"number":{number}}}')
    return Cache(folder)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_put_comes_back_in_its_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    with Cache(tmp_path) as cache:
        cache.put(key(1), value(1, dtype))
        assert same(cache.get(key(1)), value(1, dtype)), "before it is written"
    with Cache(tmp_path) as cache:
        assert same(cache.get(key(1)), value(1, dtype))


def test_a_value_beyond_half_precision_stays_finite(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        cache.put(key(1), {"x": torch.tensor([70_000.0])})
    assert Cache(tmp_path).get(key(1))["x"].item() == 70_000.0


def test_views_and_strided_tensors_are_stored_as_what_they_show(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    with Cache(tmp_path) as cache:
        cache.put(key(1), {"a": base[:, ::2], "b": base.T, "c": torch.tensor(3.0)})
        base.zero_()
    found = Cache(tmp_path).get(key(1))
    assert found["a"].tolist() == [[0, 2, 4], [6, 8, 10], [12, 14, 16], [18, 20, 22]]
    assert found["b"].shape == (6, 4)
    assert found["c"].item() == 3.0


def test_what_is_read_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.get(key(3))["latents"].zero_()
    assert same(cache.get(key(3)), value(3))


def test_missing_keys_are_told_once_and_in_order(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3)
    cache.put(key(7), value(7))
    assert cache.missing([key(9), key(1), key(8), key(9), key(7)]) == [key(9), key(8)]


def test_a_key_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no entry 0000"):
        filled(tmp_path, 1).get(key(5))


def test_equal_keys_are_stored_once(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3)
    cache.put(key(1), value(1))
    cache.put(key(4), value(4))
    cache.put(key(4), value(4))
    cache.flush()
    assert sum(len(read_header(path).entries) for path in shards(tmp_path)) == 4


def test_a_shard_is_sealed_at_its_size(tmp_path: Path) -> None:
    filled(tmp_path, 12, shard_bytes=700)
    sizes = [sum(t.end - t.begin for e in read_header(path).entries for t in e.tensors) for path in shards(tmp_path)]
    assert len(sizes) > 3
    assert max(sizes) <= 700


def test_entries_that_are_put_together_share_a_shard(tmp_path: Path) -> None:
    with Cache(tmp_path, shard_bytes=2000) as cache:
        for start in range(0, 12, 4):
            cache.put_all({key(number): value(number) for number in range(start, start + 4)})
    groups = [sorted(int(entry.key, 16) // 4 for entry in read_header(path).entries) for path in shards(tmp_path)]
    assert all(min(group) == max(group) for group in groups)


def test_a_shard_is_sealed_after_its_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path, shard_seconds=0.0)
    cache.put(key(1), value(1))
    assert len(shards(tmp_path)) == 1


def test_shards_are_plain_safetensors_that_anyone_can_read(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with safe_open(shards(tmp_path)[0], "pt") as file:
        assert torch.equal(file.get_tensor(f"{key(1)}/latents"), value(1)["latents"])


def test_a_shard_says_what_its_entries_were_made_of(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    assert read_header(shards(tmp_path)[0]).about == {key(0): '{"number":0}', key(1): '{"number":1}'}


def test_the_same_entries_make_the_same_file(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    filled(tmp_path / "b")
    (one,), (two,) = shards(tmp_path / "a"), shards(tmp_path / "b")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_the_index_is_built_again_from_the_shards(tmp_path: Path) -> None:
    filled(tmp_path, shard_bytes=700).close()
    (tmp_path / "index.sqlite").unlink()
    cache = Cache(tmp_path)
    assert all(same(cache.get(key(number)), value(number)) for number in range(12))


@pytest.mark.parametrize("damage", [b"", b"not a database", b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_index_is_built_again(tmp_path: Path, damage: bytes) -> None:
    filled(tmp_path).close()
    (tmp_path / "index.sqlite").write_bytes(damage)
    assert same(Cache(tmp_path).get(key(5)), value(5))


def test_an_index_of_another_version_is_built_again(tmp_path: Path) -> None:
    import sqlite3

    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("DROP TABLE entries")
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert same(Cache(tmp_path).get(key(5)), value(5))


def test_an_index_that_breaks_while_it_is_used_is_built_again(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    (tmp_path / "index.sqlite").write_bytes(random.Random(0).randbytes(20_000))
    assert same(cache.get(key(5)), value(5))


DAMAGE = (
    "UPDATE entries SET tensors = replace(tensors, 'F32', 'I32')",
    "UPDATE entries SET tensors = '[]'",
    "UPDATE entries SET tensors = '[' || substr(tensors, instr(tensors, '],[') + 2)",  # without the first tensor
    "UPDATE entries SET shard = 77",
    "UPDATE shards SET id = 77",
    "UPDATE shards SET name = 'x.safetensors'",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_that_still_answers_is_built_again(tmp_path: Path, damage: str) -> None:
    """Neither is another tensor read, nor is an entry called stored that cannot be found."""
    import sqlite3

    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute(damage)
    db.close()
    assert Cache(tmp_path).missing([key(5)]) == []
    assert same(Cache(tmp_path).get(key(5)), value(5))


def test_verifying_finds_rows_that_name_no_shard(tmp_path: Path) -> None:
    import sqlite3

    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("UPDATE entries SET shard = 77")
    db.close()
    with Cache(tmp_path) as cache:
        assert cache.verify() == []
        assert same(cache.get(key(5)), value(5))


def test_an_index_whose_rows_have_no_checksums_gets_them(tmp_path: Path) -> None:
    import sqlite3

    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        rows = db.execute("SELECT * FROM entries").fetchall()
        db.execute("UPDATE entries SET tensors = substr(tensors, 1, length(tensors) - 9)")
        db.execute("INSERT INTO notes VALUES ('a note', 'stays')")
        db.execute("PRAGMA user_version = 2")
    db.close()
    assert same(Cache(tmp_path).get(key(5)), value(5))
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        assert db.execute("SELECT * FROM entries").fetchall() == rows
        assert db.execute("SELECT value FROM notes WHERE name = 'a note'").fetchone() == ("stays",)
    db.close()


@pytest.mark.parametrize("wrong", ["shape", "tensor", "about", "key"])
def test_a_header_that_cannot_be_true_is_damage(tmp_path: Path, wrong: str) -> None:
    """The header has the hash that the name of the file says, as that of another program might."""
    filled(tmp_path).close()
    (file,) = shards(tmp_path)
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    name = next(name for name in header if name != "__metadata__")
    ours = json.loads(header["__metadata__"]["qframe"])
    if wrong == "shape":
        header[name]["shape"] = [-1]
    elif wrong == "tensor":
        del header[name]
    elif wrong == "about":
        ours["about"] = dict.fromkeys(ours["about"], 3)
    else:
        header["x/y"], ours["checksums"]["x/y"] = header.pop(name), ours["checksums"].pop(name)
    header["__metadata__"]["qframe"] = json.dumps(ours)
    text = json.dumps(header).encode()
    start = len(text).to_bytes(8, "little") + text
    file.unlink()
    (tmp_path / "shards" / f"{xxhash.xxh3_128(start).hexdigest()}.safetensors").write_bytes(start + data[size:])
    with Cache(tmp_path) as cache:
        assert cache.missing([key(5)]) == [key(5)]
        (damage,) = cache.verify()
    assert damage.key is None


def test_a_shard_copied_in_from_elsewhere_is_found(tmp_path: Path) -> None:
    filled(tmp_path / "a").close()
    Cache(tmp_path / "b").close()
    (source,) = shards(tmp_path / "a")
    (tmp_path / "b" / "shards" / source.name).write_bytes(source.read_bytes())
    assert same(Cache(tmp_path / "b").get(key(5)), value(5))


def test_entries_of_a_vanished_shard_are_missing(tmp_path: Path) -> None:
    filled(tmp_path).close()
    shards(tmp_path)[0].unlink()
    assert Cache(tmp_path).missing([key(1)]) == [key(1)]


def test_an_old_folder_is_opened_without_listing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path).close()
    os.utime(tmp_path / "shards", (1_700_000_000, 1_700_000_000))
    Cache(tmp_path).close()

    def fail(path: object) -> None:
        raise AssertionError(f"{path} was listed")

    monkeypatch.setattr(os, "scandir", fail)
    assert same(Cache(tmp_path).get(key(5)), value(5))


def flip(path: Path, bit: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    before = path.read_bytes()
    path.write_bytes(data)
    return before


@pytest.mark.parametrize(
    ("index", "flips"), [("kept", 300), ("lost", 40), pytest.param("kept", 10_000, marks=pytest.mark.slow)]
)
def test_every_flipped_bit_is_found_and_costs_no_other_entry(tmp_path: Path, index: str, flips: int) -> None:
    filled(tmp_path, 4).close()
    (path,) = shards(tmp_path)
    random_ = random.Random(0)
    for _ in range(flips):
        before = flip(path, random_.randrange(path.stat().st_size * 8))
        if index == "lost":
            (tmp_path / "index.sqlite").unlink()
        cache = Cache(tmp_path)
        assert len(cache.verify()) == 1
        damaged = 0
        for number in range(4):
            try:
                assert same(cache.get(key(number)), value(number))
            except CacheError:
                damaged += 1
        assert damaged <= (1 if index == "kept" else 4)
        cache.close()
        path.write_bytes(before)
        if index == "lost":
            (tmp_path / "index.sqlite").unlink()
            Cache(tmp_path).close()


@pytest.mark.parametrize(
    ("index", "step"),
    [("kept", 7), ("lost", 101), *(pytest.param(*one, marks=pytest.mark.slow) for one in [("kept", 1), ("lost", 5)])],
)
def test_a_shard_cut_anywhere_is_found(tmp_path: Path, index: str, step: int) -> None:
    filled(tmp_path, 3).close()
    (path,) = shards(tmp_path)
    data = path.read_bytes()
    for size in range(0, len(data), step):
        path.write_bytes(data[:size])
        if index == "lost":
            (tmp_path / "index.sqlite").unlink()
        with Cache(tmp_path) as cache:
            assert cache.verify(), size


def test_a_damaged_entry_is_named_dropped_and_put_again(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    (path,) = shards(tmp_path)
    entry = cache.locate([key(5)])[key(5)]
    flip(path, 8 * entry.tensors[0].begin + 3)
    with pytest.raises(DamagedEntryError, match=f"{path.name}: entry {key(5)[:16]} is damaged"):
        cache.get(key(5))
    (damage,) = cache.verify()
    assert damage.key == key(5)
    assert cache.drop([key(5)]) == 1
    assert cache.missing(key(n) for n in range(12)) == [key(5)]
    cache.put(key(5), value(5))
    cache.close()
    cache = Cache(tmp_path)
    assert cache.verify() == []
    assert all(same(cache.get(key(number)), value(number)) for number in range(12))
    assert not path.exists()


def test_repair_keeps_every_whole_entry_of_a_shard_with_a_damaged_header(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    flip(shards(tmp_path)[0], 8 * 60)
    assert cache.verify()
    cache.repair(cache.verify())
    assert cache.verify() == []
    cache.close()
    (tmp_path / "index.sqlite").unlink()
    cache = Cache(tmp_path)
    assert all(same(cache.get(key(number)), value(number)) for number in range(12))


def test_repair_throws_away_a_shard_that_nothing_is_known_of(tmp_path: Path) -> None:
    filled(tmp_path, shard_bytes=700).close()
    (tmp_path / "index.sqlite").unlink()
    broken = shards(tmp_path)[0]
    broken.write_bytes(b"garbage")
    cache = Cache(tmp_path)
    cache.repair(cache.verify())
    assert not broken.exists()
    assert cache.verify() == []
    assert 0 < len(cache.missing(key(n) for n in range(12))) < 12


def test_a_reader_goes_on_when_another_process_rewrites_a_shard(tmp_path: Path) -> None:
    reader = filled(tmp_path)
    assert same(reader.get(key(1)), value(1))
    filled(tmp_path, 0).drop([key(2)])
    assert same(reader.get(key(1)), value(1))
    assert same(reader.get(key(3)), value(3))
    other = Cache(tmp_path)
    Cache(tmp_path).drop([key(4)])
    assert same(other.get(key(5)), value(5))


def test_the_checksum_is_computed_once_per_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path)
    verified: list[bool] = []
    import qframe.cache.reading as reading

    real = reading.read_tensor

    def watched(*args: object, verify: bool) -> Tensor:
        verified.append(verify)
        return real(*args, verify=verify)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_tensor", watched)
    cache.get(key(1))
    cache.get(key(1))
    assert verified == [True, True, False, False]


def test_a_full_disk_is_told_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qframe.cache.writing as writing

    cache = filled(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise ResourceError(f"{path}: full")

    monkeypatch.setattr(writing, "write_file", full)
    cache.put(key(50), value(50))
    with pytest.raises(ResourceError):
        cache.flush()
    monkeypatch.undo()
    assert same(Cache(tmp_path).get(key(5)), value(5))


def test_threads_may_read_at_once_from_more_shards_than_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qframe.cache.reading._OPEN_SHARDS", 2)
    cache = filled(tmp_path, 24, shard_bytes=300)
    assert len(shards(tmp_path)) > 8
    wrong: list[object] = []

    def read(seed: int) -> None:
        random_ = random.Random(seed)
        try:
            for _ in range(150):
                number = random_.randrange(24)
                assert same(cache.get(key(number)), value(number))
        except BaseException as error:  # noqa: BLE001 (any failure of a thread must reach the test)
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_statistics_count_entries_shards_and_bytes(tmp_path: Path) -> None:
    stats = filled(tmp_path, shard_bytes=700).stats()
    assert (stats.entries, stats.shards) == (12, len(shards(tmp_path)))
    assert stats.bytes == sum(path.stat().st_size for path in shards(tmp_path))


class NaiveCache:
    """What not to do: a file per entry, written in place, read without a check. The harness must catch it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        (self.folder / f"{name}.safetensors").write_bytes(save(tensors))

    def get(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load

        return load((self.folder / f"{name}.safetensors").read_bytes())


def unnoticed_flips(folder: Path, get: object) -> int:
    """How many of 40 flipped data bits go through `get` unseen."""
    path = next(iter(folder.rglob("*.safetensors")))
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    unseen = 0
    for number in range(40):
        before = flip(path, 8 * start + 29 * number)
        try:
            assert callable(get)
            unseen += not same(get(), value(1))
        except CacheError:
            pass
        path.write_bytes(before)
    return unseen


def test_the_harness_of_bit_flips_catches_a_naive_cache(tmp_path: Path) -> None:
    (tmp_path / "naive").mkdir()
    naive = NaiveCache(tmp_path / "naive")
    naive.put(key(1), value(1))
    assert unnoticed_flips(tmp_path / "naive", lambda: naive.get(key(1))) > 30
    with Cache(tmp_path / "ours") as cache:
        cache.put(key(1), value(1))
    assert unnoticed_flips(tmp_path / "ours", lambda: Cache(tmp_path / "ours").get(key(1))) == 0
