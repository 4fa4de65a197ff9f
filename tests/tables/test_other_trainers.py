"""Tables as users of other trainers have them: which column is what, and unknown columns told all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qframe.data.names import COLUMNS, column_meaning
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe_tables.options import TableOptions
from qframe_tables.tables import CsvSource, JsonlSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png", "w.png"):
        (tmp_path / name).touch()
    return tmp_path


def jsonl(root: Path, *rows: object, suffix: str = ".jsonl", **options: Any) -> list[Record]:
    path = root / f"rows{suffix}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(JsonlSource(TableOptions(**options), path).records())


def csv(root: Path, text: str, **options: Any) -> list[Record]:
    path = root / "rows.csv"
    path.write_text(text)
    return list(CsvSource(TableOptions(**options), path).records())


def files(record: Record) -> list[str]:
    pictures = [record.target, *record.references, *([record.loss_map] if record.loss_map else [])]
    return [Path(str(picture.source)).name for picture in pictures]


ROWS: dict[str, tuple[dict[str, object], list[str]]] = {
    "musubi-tuner": ({"image_path": "a.png", "control_path": "b.png", "caption": "p"}, ["a.png", "b.png"]),
    "musubi-tuner, several": (
        {"image_path": "a.png", "control_path_1": "c.png", "control_path_0": "b.png", "caption": "p"},
        ["a.png", "b.png", "c.png"],
    ),
    "imagefolder": ({"file_name": "a.png", "text": "p"}, ["a.png"]),
    "DiffSynth": ({"image": "a.png", "prompt": "p", "edit_image": ["b.png", "c.png"]}, ["a.png", "b.png", "c.png"]),
    "InstructPix2Pix": (
        {"original_image": "b.png", "edited_image": "a.png", "edit_prompt": "p"},
        ["a.png", "b.png"],
    ),
    "MagicBrush": ({"source_img": "b.png", "target_img": "a.png", "instruction": "p"}, ["a.png", "b.png"]),
    "ControlNet": ({"image": "a.png", "conditioning_image": "b.png", "text": "p"}, ["a.png", "b.png"]),
    "with a mask": ({"Image": "a.png", "Mask Path": "w.png", "Caption": "p"}, ["a.png", "w.png"]),
    "key without a value": ({"target": None, "image": "a.png", "prompt": "", "caption": "p"}, ["a.png"]),
}


@pytest.mark.parametrize("trainer", ROWS)
def test_rows_of_other_trainers_are_understood(root: Path, trainer: str) -> None:
    row, expected = ROWS[trainer]
    (record,) = jsonl(root, row)
    assert (record.prompt, files(record)) == ("p", expected)
    cells = {key: json.dumps(value) if isinstance(value, list) else str(value or "") for key, value in row.items()}
    if trainer != "key without a value":  # a table cannot leave a column out in one row
        lines = [",".join(cells), ",".join('"' + cell.replace('"', '""') + '"' for cell in cells.values())]
        (record,) = csv(root, "\n".join(lines) + "\n")
        assert (record.prompt, files(record)) == ("p", expected)


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in COLUMNS.items() for name in names if part != "prompt"]
)
def test_every_name_in_the_table_is_read_as_it_says(root: Path, part: str, name: str) -> None:
    base = {"target": "a.png", "prompt": "p"}
    if part == "target":
        del base["target"]
    value = {"target": "a.png", "references": "b.png", "weight": "w.png", "id": "x", "group": "g"}[part]
    for spelling in (name, name.upper().replace("_", "-")):
        (record,) = jsonl(root, {**base, spelling: value})
        expected = {"target": ["a.png"], "references": ["a.png", "b.png"], "weight": ["a.png", "w.png"]}
        assert files(record) == expected.get(part, ["a.png"])
        if part in ("id", "group"):
            assert getattr(record, part) == value


def test_no_name_means_two_things() -> None:
    names = [name for own in COLUMNS.values() for name in own]
    assert len(names) == len(set(names))
    assert all(column_meaning(name) is not None for name in names)


def test_all_unknown_keys_are_told_at_once_and_rows_with_the_same_ones_are_one_line(root: Path) -> None:
    rows = [{"image": "a.png", "promt": "p", "quality": 3, "id": str(number)} for number in range(40)]
    with pytest.raises(DataError) as caught:
        jsonl(root, *rows)
    lines = caught.value.message.splitlines()
    assert len(lines) == 2  # the name, and one cause
    assert "40 times: unknown keys 'promt' (did you mean 'prompt'?), 'quality'; known: " in lines[1]
    with pytest.raises(DataError, match=r"unknown columns 'promt' \(did you mean 'prompt'\?\), 'quality'"):
        csv(root, "image,promt,quality\na.png,p,3\n")


def test_columns_of_unknown_meaning_are_left_out_if_one_says_so(root: Path) -> None:
    (record,) = jsonl(root, {"image": "a.png", "prompt": "p", "quality": 3}, other_columns="ignore")
    assert record.prompt == "p"
    (record,) = csv(root, "image,prompt,quality\na.png,p,3\n", other_columns="ignore")
    assert record.prompt == "p"


def test_the_user_says_which_column_is_what_in_every_table(root: Path) -> None:
    columns = {"target": "result", "prompt": "wish", "reference1": "pose", "reference2": "face", "mask": "where"}
    row = {"wish": "p", "result": "a.png", "pose": "b.png", "face": "c.png", "where": "w.png"}
    expected = ["a.png", "b.png", "c.png", "w.png"]
    (record,) = jsonl(root, row, columns=columns)
    assert (record.prompt, files(record)) == ("p", expected)
    (record,) = csv(root, f"{','.join(row)}\n{','.join(row.values())}\n", columns=columns)
    assert (record.prompt, files(record)) == ("p", expected)
    with pytest.raises(DataError, match=r"there is no column 'resalt' and 'wosh'"):
        csv(root, "result,wish\na.png,p\n", columns={"target": "resalt", "prompt": "wosh"})


def test_two_keys_of_one_meaning_are_not_chosen_from(root: Path) -> None:
    with pytest.raises(DataError, match=r"has both 'image' and 'edited_image'.*data.options.columns.target"):
        jsonl(root, {"image": "a.png", "edited_image": "b.png", "prompt": "p"})
    with pytest.raises(DataError, match=r"has both 'control' and 'source'"):
        csv(root, "image,prompt,control,source\na.png,p,b.png,c.png\n")


def test_json_files_hold_a_list_or_the_metadata_of_kohyas_programs(root: Path) -> None:
    path = root / "rows.json"
    path.write_text(json.dumps([{"image": "a.png", "prompt": "p"}, {"image": "b.png", "prompt": "q"}], indent=1))
    records = JsonlSource(None, path).records()
    assert [(record.id, record.prompt) for record in records] == [("rows-1", "p"), ("rows-2", "q")]
    path.write_text(json.dumps({"a": {"caption": "p"}, "b.png": {"caption": "q"}}))
    assert [files(record) for record in JsonlSource(None, path).records()] == [["a.png"], ["b.png"]]
    for text, message in (("[1]", "expected an object"), ("[", "not valid JSON"), ("[]", "there are no rows")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            JsonlSource(None, path).records()


def test_paths_of_windows_and_of_another_folder_are_found(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in" / "d.png").touch()
    (record,) = jsonl(root, {"image": "in\\d.png", "prompt": "p"})
    assert record.target.source == root / "in/d.png"
    tables = root / "tables"
    tables.mkdir()
    (record,) = jsonl(tables, {"image": "a.png", "prompt": "p"}, folder=str(root))
    assert record.target.source == root / "a.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "a.png", "prompt": "p", "id": "\ud800"}, "its id holds half a character"),
        ({"target": "a.png", "prompt": "p", "group": "\ud800"}, "its group holds half a character"),
        ({"target": "a.png", "prompt": "p", "id": "a\0"}, "its id holds the control character"),
        ({"target": "a.png", "prompt": "a\0b"}, "the prompt holds the control character"),
        ({"target": "a.png", "prompt": "p", "\ud800": "x"}, "unknown key"),
        ({"target": "a.png", "prompt": "p", "control" + "1" * 5000: "b.png"}, "unknown key 'control1111"),
    ],
    ids=["id", "group", "nul in id", "nul in prompt", "key", "digits"],
)
def test_texts_that_cannot_be_written_are_named(root: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        jsonl(root, row)
    caught.value.message.encode()  # it can be printed
    assert message in caught.value.message
    assert "rows.jsonl, row 1" in caught.value.message
    assert len(caught.value.message) < 1000


def test_a_column_with_thousands_of_digits_is_named(root: Path) -> None:
    name = "reference" + "1" * 5000
    with pytest.raises(DataError, match="unknown column 'reference111"):
        csv(root, f"target,prompt,{name}\na.png,p,b.png\n")


def test_a_whole_number_serves_as_id(root: Path) -> None:
    (record,) = jsonl(root, {"image": "a.png", "prompt": "p", "id": 7})
    assert record.id == "7"
