"""Prompts made of captions: trigger words, prefixes, templates, shuffled tags; repeats and weights; alpha as mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qframe.data.captions import Captions
from qframe.data.files import FileSource
from qframe.data.options import SourceOptions
from qframe.data.repeats import MOST_RECORDS, Repeated, weighted_counts
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_grey
from qframe_tables.options import TableOptions
from qframe_tables.tables import JsonlSource
from tests.data.test_folder import problems, read, write


def prompt(caption: str, copy: int = 0, **options: object) -> str:
    record = Record(id="trip/old_boat", origin="o", prompt=caption, target=Picture("o", b""))
    return Captions(SourceOptions(**options)).prompt(record, copy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "a boat"),
        ({"trigger": "sks"}, "sks, a boat"),
        ({"trigger": "boat"}, "a boat"),
        ({"prefix": "in ink:", "suffix": "at sea"}, "in ink: a boat at sea"),
        ({"template": "a photo of {trigger}", "trigger": "sks"}, "a photo of sks"),
        ({"template": ("{caption}, {name}",)}, "a boat, old boat"),
        ({"template": "[trigger]: {caption}", "trigger": "sks"}, "sks: a boat"),
    ],
)
def test_a_prompt_is_made_of_its_caption(options: dict[str, object], expected: str) -> None:
    assert prompt("a boat", **options) == expected


def test_a_trigger_word_takes_the_place_that_a_caption_keeps_for_it() -> None:
    assert prompt("[trigger] on a boat, [trigger]", trigger="sks") == "sks on a boat, sks"


def test_repeats_take_one_template_after_another() -> None:
    templates = ("a photo of {caption}", "a picture of {caption}")
    assert [prompt("x", copy, template=templates) for copy in range(3)] == [
        "a photo of x",
        "a picture of x",
        "a photo of x",
    ]


def test_an_unknown_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{foo\} stands for nothing; a template may hold \{caption\}"):
        SourceOptions(template="a {foo}")


@given(st.lists(st.text("abc", min_size=1), max_size=8), st.integers(0, 9), st.integers(0, 5))
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(tags: list[str], keep: int, copy: int) -> None:
    found = prompt(", ".join(tags), copy, shuffle_tags=True, keep_tags=keep).split(", ") if tags else []
    assert sorted(found) == sorted(tags)
    assert found[:keep] == tags[:keep]


def test_each_repeat_has_an_order_of_its_own_that_stays_the_same() -> None:
    tags = ", ".join("abcdefgh")
    orders = [prompt(tags, copy, shuffle_tags=True) for copy in range(5)]
    assert len(set(orders)) == 5
    assert orders == [prompt(tags, copy, shuffle_tags=True) for copy in range(5)]


def test_pictures_need_no_caption_if_the_template_has_none(tmp_path: Path) -> None:
    write(tmp_path, "red_cat.png")
    (record,) = read(tmp_path, template="a photo of {trigger}, {name}", trigger="sks")
    assert record.prompt == "a photo of sks, red cat"
    assert "there is no caption" in problems(tmp_path, template="a photo of {caption}")


def test_options_hold_for_tables_too(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": "b.png", "caption": "y"}\n')
    source: FileSource = JsonlSource(TableOptions(repeats=2, trigger="sks", validation=1), tmp_path / "rows.jsonl")
    (kept,) = source.validation()
    records = source.records()
    assert [record.original for record in records] == ["", records[0].id]
    assert {kept.prompt, records[0].prompt, records[1].prompt} == {"sks, x", "sks, y"}
    assert kept.id not in {record.id for record in records}
    assert len(source.survey().records) == 2  # a check looks at every record once


def test_a_repeat_whose_id_is_taken_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "a#2.png", "a#2.txt")
    with pytest.raises(DataError, match="a repeat of another record would have this id"):
        read(tmp_path, repeats=2)


def test_repeats_are_bounded_before_anything_is_made() -> None:
    with pytest.raises(DataError, match="more than 10000000"):
        Repeated([], [MOST_RECORDS, 1], lambda record, copy: record)


def counts(sizes: list[int], weights: list[float]) -> list[list[int]]:
    return weighted_counts([[f"{own}-{n}" for n in range(size)] for own, size in enumerate(sizes)], weights)


def test_weights_are_the_parts_of_an_epoch() -> None:
    assert counts([3, 3], [1, 1]) == [[1, 1, 1], [1, 1, 1]]
    assert counts([2, 6], [1, 1]) == [[3, 3], [1] * 6]
    small, large = counts([4, 10], [3, 1])
    assert (sum(small), sum(large)) == (30, 10)
    assert {7, 8} == set(small)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 100)), min_size=1, max_size=4))
def test_every_record_is_visited_and_parts_are_as_weights_say_up_to_a_record(sets: list[tuple[int, float]]) -> None:
    found = counts([size for size, _ in sets], [weight for _, weight in sets])
    assert all(min(own) >= 1 for own in found)
    whole = max(size / weight for size, weight in sets)  # of the data set that is visited least, every record once
    for own, (_, weight) in zip(found, sets, strict=True):
        assert abs(sum(own) - weight * whole) <= 0.5 + 1e-6 * weight * whole


def test_alpha_is_the_mask_of_a_target(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt", "c.txt")
    values = np.full((6, 8, 4), 200, np.uint8)
    values[:, 4:, 3] = 0
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.new("RGB", (8, 6), "red").save(tmp_path / "b.png")
    Image.fromarray(values).save(tmp_path / "c.png")
    Image.new("L", (8, 6), 9).save(tmp_path / "c_mask.png")
    assert read(tmp_path)[0].loss_map is None
    half, none, own = (record.loss_map for record in read(tmp_path, alpha_mask=True))
    assert half is not None
    assert none is not None
    assert own is not None
    assert np.asarray(open_grey(half))[0].tolist() == [200] * 4 + [0] * 4
    assert set(np.asarray(open_grey(none)).ravel()) == {255}
    assert own.origin == "c_mask.png"
    assert half.digest() == half.digest()
