"""Folders as users of other trainers have them: what is recognised, what the user names, what stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qframe.data.folder import FolderSource
from qframe.data.options import FolderOptions
from qframe.errors import DataError
from tests.data.test_folder import problems, read, references, write

PAIRS = {
    "ai-toolkit, musubi-tuner": ["targets/a.png", "targets/a.txt", "control/a.png"],
    "folders side by side": ["output/a.png", "output/a.txt", "input/a.jpg"],
    "captions at the top": ["images/a.png", "a.txt", "source/a.png"],
    "targets at the top": ["a.png", "a.txt", "Before/a.png"],
    "captions in a folder": ["target/a.png", "captions/a.txt", "reference/a.png"],
    "control_1 alone": ["img/a.png", "img/a.txt", "control_1/a.png"],
    "start and end": ["a_start.png", "a_end.png", "a.txt"],
    "caption of the end": ["a_start.png", "a_end.png", "a_end.txt"],
    "before and after": ["in/a_before.jpg", "in/a_AFTER.png", "in/a.txt"],
    "source beside the target": ["a.png", "a_source.png", "a.txt"],
    "OneTrainer": ["a.png", "a-condlabel.png", "a.txt"],
    "number in control": ["images/a.png", "images/a.txt", "control/a_0.png"],
    "caption files of kohya": ["target/a.png", "target/a.caption", "control/a.png"],
}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_pair_is_recognised(tmp_path: Path, layout: str) -> None:
    write(tmp_path, *PAIRS[layout])
    (record,) = read(tmp_path)
    (reference,) = references(record)
    shown = {record.target.origin, reference}
    assert shown == {name for name in PAIRS[layout] if not name.endswith((".txt", ".caption"))}
    caption = next(name for name in PAIRS[layout] if name.endswith((".txt", ".caption")))
    assert record.prompt == f"caption {caption}"
    target = record.target.origin.lower()
    assert not any(sign in target for sign in ("control", "source", "input", "before", "start", "reference", "cond"))


@pytest.mark.parametrize("mask", ["masks/a.png", "Mask/a.jpg", "loss_masks/a.png", "a-masklabel.png", "weights/a.png"])
def test_a_loss_map_is_recognised(tmp_path: Path, mask: str) -> None:
    write(tmp_path, "a.png", "a.txt", mask)
    (record,) = read(tmp_path)
    assert record.loss_map is not None
    assert record.loss_map.origin == mask


def test_several_references_are_numbered_from_0_or_1_in_names_or_folders(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/a.txt", "control/a_0000.png", "control/a_0001.png")
    write(tmp_path, "images/b.png", "images/b.txt", "control/b_1.png", "control/b_2.png", "control/b_3.png")
    first, second = read(tmp_path)
    assert references(first) == ["control/a_0000.png", "control/a_0001.png"]
    assert references(second) == ["control/b_1.png", "control/b_2.png", "control/b_3.png"]
    other = tmp_path / "other"
    write(other, "target/a.png", "target/a.txt", "reference2/a.png", "reference1/a.png")
    assert references(read(other)[0]) == ["reference1/a.png", "reference2/a.png"]


def test_folders_with_captions_of_their_own_hold_targets(tmp_path: Path) -> None:
    """A data set that could be read before other trainers' names were known is read alike."""
    write(tmp_path, "source/a.png", "source/a.txt", "input/a.png", "input/a.txt", "images/a.png", "images/a.txt")
    assert [(record.id, references(record)) for record in read(tmp_path)] == [
        ("images/a", []),
        ("input/a", []),
        ("source/a", []),
    ]
    pair = tmp_path / "pair"
    write(
        pair, "x_start.png", "x_start.txt", "x_end.png", "x_end.txt", "y_before.png", "y_before.txt", "y.png", "y.txt"
    )
    assert [(record.id, references(record)) for record in read(pair)] == [
        ("x_end", []),
        ("x_start", []),
        ("y", []),
        ("y_before", []),
    ]


def test_a_mirror_of_the_whole_path_goes_before_a_shortened_one(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/a.txt", "control/images/a.png", "a.png", "a.txt", "control/a.png")
    assert {record.id: references(record) for record in read(tmp_path)} == {
        "a": ["control/a.png"],
        "images/a": ["control/images/a.png"],
    }


def test_a_name_that_fits_two_targets_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "images/a.txt", "targets/a.png", "targets/a.txt", "control/a.png")
    assert "control/a.png: belongs to no target" in problems(tmp_path)


def test_the_user_names_folders_inside_and_elsewhere(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    write(data, "a.png", "extra/texts/a.txt", "extra/matte/a.png")
    write(tmp_path, "before/a.png", "pose/a.jpg")
    options = {
        "references": ("../before", str(tmp_path / "pose")),
        "loss_maps": "extra/matte",
        "captions": "extra/texts",
    }
    (record,) = read(data, **options)
    assert [picture.source for picture in record.references] == [data / "../before/a.png", tmp_path / "pose/a.jpg"]
    assert record.loss_map is not None
    assert (record.loss_map.origin, record.prompt) == ("extra/matte/a.png", "caption extra/texts/a.txt")
    with pytest.raises(DataError, match=r"no folder 'befor' in .*\n.*The folders there are: extra"):
        read(data, references=("befor",))


def test_named_folders_take_the_place_of_usual_names(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "control/b.png", "control/b.txt", "old/a.png", "old/control/b.png")
    assert {record.id: references(record) for record in read(tmp_path, references=("old",))} == {
        "a": ["old/a.png"],
        "control/b": ["old/control/b.png"],
    }


def test_a_named_folder_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.png")
    write(tmp_path / "data", "a.png", "a.txt")
    (tmp_path / "data" / "old").symlink_to(tmp_path / "elsewhere")
    (record,) = read(tmp_path / "data", references=("old",))
    assert references(record) == ["old/a.png"]
    assert "a link to a folder" in problems(tmp_path / "data")


def test_one_cause_is_one_line_for_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path, *(f"goal/{n:02}.png" for n in range(20)), *(f"goal/{n:02}.txt" for n in range(20)))
    write(tmp_path, *(f"control/{n:02}x.png" for n in range(20)))
    message = problems(tmp_path)
    assert message.count("\n") == 1
    assert "20 times: belongs to no target" in message


def test_caption_suffixes(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "a.caption", "b.png", "b.caption", "c.caption")
    assert [record.prompt for record in read(tmp_path)] == ["caption a.txt", "caption b.caption"]
    write(tmp_path, "d.png", "d.tags", "a.tags", "b.tags")
    assert [record.prompt for record in read(tmp_path, caption_suffix="tags")] == [
        "caption a.tags",
        "caption b.tags",
        "caption d.tags",
    ]


def test_repeats_in_the_name_of_a_folder_are_obeyed(tmp_path: Path) -> None:
    write(tmp_path, "10_woman/a.png", "10_woman/a.txt", "2_sks dog/b.png", "other/c.png", "other/c.txt")
    records = read(tmp_path)
    count = {
        name: sum(record.target.origin == name for record in records) for name in ("10_woman/a.png", "other/c.png")
    }
    assert (len(records), count) == (13, {"10_woman/a.png": 10, "other/c.png": 1})
    assert [record.id for record in records[:4]] == ["10_woman/a", "2_sks dog/b", "other/c", "10_woman/a#2"]
    assert records[3].original == "10_woman/a"
    assert records[3].target is records[0].target
    assert records[1].prompt == "sks dog"  # the class tokens of kohya's programs
    assert len(read(tmp_path, repeats=3)) == 39
    assert "2_sks dog/b.png: there is no caption" in problems(tmp_path, folder_repeats=False)
    notes = FolderSource(None, tmp_path).notes()
    assert notes[0].startswith("10_woman/: every picture counts 10 times")


def test_repeats_inside_the_folder_of_kohyas_programs_and_years_are_no_repeats(tmp_path: Path) -> None:
    write(tmp_path, "img/3_cat/a.png", "img/3_cat/a.txt")
    assert [record.id for record in read(tmp_path)] == ["img/3_cat/a", "img/3_cat/a#2", "img/3_cat/a#3"]
    write(tmp_path, "img/2024_holiday/b.png", "img/2024_holiday/b.txt", "img/2024_holiday/c.png")
    assert problems(tmp_path).count("2024_holiday/: the name asks for more than 1000 repeats") == 1


def test_recognised_folders_are_said(tmp_path: Path) -> None:
    write(tmp_path, "output/a.png", "output/a.txt", "input/a.jpg", "masks/a.png")
    assert FolderSource(None, tmp_path).notes() == [
        "input/ is read as the folder of references, as its name says",
        "masks/ is read as the folder of loss maps, as its name says",
    ]
    write(tmp_path / "own", "a.png", "a.txt", "control/a.png")
    assert FolderSource(None, tmp_path / "own").notes() == []


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "captions.json"])
def test_a_table_that_holds_the_captions_is_named_once(tmp_path: Path, table: str) -> None:
    write(tmp_path, "a.png", "b.png", table)
    with pytest.raises(DataError, match=rf"{table} seems to hold the captions\nGive --data .*{table}"):
        read(tmp_path)
    assert len(read(tmp_path, prompt="p")) == 2


def test_names_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_text("x")
        (tmp_path / os.fsdecode(b"\xff")).mkdir()
        (tmp_path / os.fsdecode(b"\xff") / "b.png").write_text("x")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    message = problems(tmp_path)
    message.encode()  # it can be printed
    assert "2 times: its name is not UTF-8; rename it: " in message
    assert r"caf\udce9.png" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a cat".encode("utf-16-le"), "it holds a NUL character"),
        ("a cat".encode("utf-32"), "it holds a NUL character"),
        ("白い猫が窓辺に座っている".encode("utf-16-le"), "not UTF-8"),
        ("白い猫".encode("shift-jis"), "not UTF-8"),
        (b"a\0cat", "it holds a NUL character"),
        (b"a \x1b[31mcat", "control character"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ],
    ids=["utf-16", "utf-32", "utf-16 of kanji", "shift-jis", "nul", "escape", "png"],
)
def test_captions_that_are_no_text_in_utf8_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    assert message in problems(tmp_path)


def test_utf_16_with_a_mark_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("猫の絵".encode("utf-16"))
    assert read(tmp_path)[0].prompt == "猫の絵"


def test_options_are_checked_as_captions_are() -> None:
    for name in ("prompt", "trigger", "prefix", "suffix", "template"):
        with pytest.raises(ValueError, match="control character"):
            FolderOptions(**{name: "a\0b"})
