"""The figures that the cache promises, with room for a busy machine; and how they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from qframe.cache import Cache
from qframe_bench.training.index import fill_index, open_index
from qframe_bench.training.reading import PUBLISHED_SIZES, published_size_examples, read_pace


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
def test_an_index_of_a_million_entries_opens_in_a_second_and_200_mb(tmp_path: Path) -> None:
    found = open_index(tmp_path, 1_000_000)
    assert found.processor < 1.0
    assert found.bytes < 200e6


@pytest.mark.slow
def test_examples_are_read_at_nearly_the_pace_of_their_bytes(tmp_path: Path) -> None:
    found = read_pace(published_size_examples(tmp_path, *PUBLISHED_SIZES["1024 x 1024"]), repeats=12)
    assert found.bytes > 10e6
    # Either clock will do: the best rounds of both sides may fall into different weather.
    for one, least in ((found.later, 0.8), (found.first, 0.5)):  # first: every byte is hashed, too
        assert max(found.raw.wall / one.wall, found.raw.processor / one.processor) > least
