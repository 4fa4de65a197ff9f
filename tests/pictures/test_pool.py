"""Pictures opened in threads: the same ones, in order, few at a time, with the error of the first that is bad."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing

import pytest
from PIL import Image

from qframe.errors import DataError
from qframe.pictures import pool
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import open_fitted, open_picture
from qframe.pictures.pool import open_groups

GEOMETRY = Geometry(min_area=16 * 16, max_area=16 * 16, multiple=8)


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(number: int, source: bytes | Callable[[], bytes] | None = None) -> PixelInput:
    return PixelInput(Picture(f"picture {number}", encoded(number) if source is None else source), GEOMETRY)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("qframe")]


def test_pictures_are_those_that_are_opened_one_by_one_in_their_order() -> None:
    groups = [[pixels(10 * g + i) for i in range(5)] for g in range(4)]
    with closing(open_groups(groups)) as opened:
        found = [[image.tobytes() for image in group] for group in opened]
    assert found == [[open_fitted(one).tobytes() for one in group] for group in groups]
    assert threads() == []


def test_at_most_two_groups_are_open_and_one_is_opened_ahead() -> None:
    asked: list[int] = []

    def source(number: int) -> Callable[[], bytes]:
        def read() -> bytes:
            asked.append(number)
            return encoded(number)

        return read

    groups = [[pixels(2 * g + i, source(2 * g + i)) for i in range(2)] for g in range(10)]
    with closing(open_groups(groups)) as opened:
        next(opened)
        until = time.monotonic() + 5
        while len(asked) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sorted(asked) == [0, 1, 2, 3]
    assert threads() == []


def test_the_error_is_that_of_the_first_bad_picture_and_the_threads_end() -> None:
    groups = [[pixels(0)], [pixels(1), pixels(2, b"not a picture"), pixels(3, b"neither")]]
    with closing(open_groups(groups)) as opened:
        next(opened)
        with pytest.raises(DataError, match="picture 2"):
            next(opened)
    assert threads() == []


def test_an_interruption_ends_the_threads() -> None:
    def work() -> None:
        with closing(open_groups([[pixels(i)] for i in range(50)])) as opened:
            next(opened)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert threads() == []


def test_a_source_is_asked_for_one_picture_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "THREADS", 8)
    inside, most = 0, 0

    def read() -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.005)
        inside -= 1
        return encoded(1)

    with closing(open_groups([[pixels(i, read) for i in range(12)]])) as opened:
        next(opened)
    assert most == 1


def test_pictures_are_opened_at_once_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads meet inside: one alone would wait for ever."""
    monkeypatch.setattr(pool, "THREADS", 2)
    meeting = threading.Barrier(2, timeout=10)

    def met(one: PixelInput, *, channels: int) -> Image.Image:
        meeting.wait()
        return open_fitted(one, channels=channels)

    monkeypatch.setattr(pool, "open_fitted", met)
    with closing(open_groups([[pixels(0), pixels(1)]])) as opened:
        assert len(next(opened)) == 2


def test_opening_in_threads_leaves_the_filters_of_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    with closing(open_groups([[pixels(i) for i in range(64)]])) as opened:
        next(opened)
    assert list(warnings.filters) == before
    open_picture(Picture("one", encoded(1)))
    assert list(warnings.filters) == before
