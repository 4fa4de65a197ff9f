"""The figures that the cache promises, with room for a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import cache_index, cache_read

pytestmark = pytest.mark.slow


def test_an_index_of_a_million_entries_opens_in_a_second_and_200_mb(tmp_path: Path) -> None:
    found = cache_index.measure(tmp_path)
    assert found["processor"] < 1.0
    assert found["memory"] < 200e6


def test_examples_are_read_at_nearly_the_pace_of_their_bytes(tmp_path: Path) -> None:
    found = cache_read.measure(tmp_path, *cache_read.SIZES["1024 x 1024"], repeats=12)
    assert found.bytes > 10e6
    first, later = (pace.of(found.raw) for pace in (found.first, found.later))
    # Either clock will do: the best rounds of both sides may fall into different weather.
    assert max(later.wall, later.processor) > 0.8
    assert max(first.wall, first.processor) > 0.5, "every byte is hashed, too"
