"""Contact sheets show every picture, large enough to see, without changing it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qframe.pictures.contact_sheet import Row, contact_sheet


def spots(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (np.asarray(sheet) == colour).all(axis=-1)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_every_picture_is_there_enlarged_by_a_whole_factor() -> None:
    tiny = Image.new("RGB", (20, 10), RED)
    tiny.putpixel((3, 4), GREEN)
    sheet = contact_sheet([("tiny", [tiny, picture(BLUE)])], ["before", "after"])
    assert spots(sheet, GREEN).sum() == 7 * 7, "a pixel became a square: 20 pixels times 7 are at least 128"
    assert spots(sheet, BLUE).sum() == 128 * 128


def test_large_pictures_are_scaled_down_and_keep_their_shape() -> None:
    sheet = contact_sheet([("large", [picture(RED, (1000, 500))])], ["x"])
    rows, columns = np.nonzero(spots(sheet, RED))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (192, 384)


def test_columns_line_up_and_gaps_stay_empty() -> None:
    sheet = contact_sheet([("a", [picture(RED), picture(BLUE)]), ("b", [None, picture(GREEN)])], ["one", "two"])
    assert np.nonzero(spots(sheet, BLUE))[1].min() == np.nonzero(spots(sheet, GREEN))[1].min()


def test_the_pictures_given_are_not_changed() -> None:
    large = picture(RED, (900, 900))
    contact_sheet([("x", [large])], ["x"])
    assert large.size == (900, 900)


def test_ticks_and_crosses_are_drawn_where_success_is_known() -> None:
    tick = np.asarray(contact_sheet([Row("a", [picture(RED)], True)], ["x"]))
    cross = np.asarray(contact_sheet([Row("a", [picture(RED)], False)], ["x"]))
    nothing = np.asarray(contact_sheet([Row("a", [picture(RED)], None)], ["x"]))
    assert not (tick == cross).all()
    assert nothing.shape[1] < tick.shape[1]


@pytest.mark.parametrize("label", ["", "a " * 400, "x" * 500, "make the circle blue", "把圆变成蓝色"])
def test_labels_of_any_length_and_script_fit_their_place(label: str) -> None:
    sheet = contact_sheet([Row(label, [picture(RED)], note="a note")], ["x"])
    assert spots(sheet, RED).sum() == 128 * 128, "no label runs into a picture"


def test_a_row_with_a_picture_too_few_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 pictures for 2 columns"):
        contact_sheet([("a", [None, None]), ("b", [None])], ["x", "y"])


def test_a_sheet_without_rows_is_a_picture_too() -> None:
    assert contact_sheet([], ["x"], title="nothing").size[0] > 100
