"""How the figures that the cache promises are found. The times themselves are in docs/reference/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from qframe.cache import Cache
from qframe_bench.training.index import fill_index, open_index
from qframe_bench.training.reading import published_size_examples, read_pace


def test_examples_are_read_from_what_is_there(tmp_path: Path) -> None:
    found = read_pace(published_size_examples(tmp_path, 4, 3, 2), repeats=1)
    assert found.examples == 2
    assert found.bytes == 2 * (2 * 16 * 4 * 4 + 3 * 3584)
    assert min(found.raw.wall, found.later.wall, found.first.wall) > 0


def test_an_index_that_was_filled_knows_its_entries(tmp_path: Path) -> None:
    fill_index(tmp_path, 1100)
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert Cache(tmp_path).missing([f"{number:064x}" for number in (0, 499, 500, 1099, 1100)]) == [f"{1100:064x}"]


@pytest.mark.slow
def test_an_index_of_a_million_entries_needs_less_than_200_mb(tmp_path: Path) -> None:
    found = open_index(tmp_path, 1_000_000)
    assert found.bytes < 200e6
