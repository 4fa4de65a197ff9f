"""docs/reference/data-formats.md says what the code does: its examples are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from qframe.data.folder import FolderSource
from qframe.data.names import COLUMNS, ENDINGS, FOLDERS
from qframe.data.options import FolderOptions, SourceOptions
from qframe.interfaces import Record
from qframe.pictures.pixels import FORMATS
from qframe_tables.options import ColumnOptions, DatasetsOptions, TableOptions
from qframe_tables.tables import CsvSource, JsonlSource

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "data-formats.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def names(record: Record) -> tuple[str, list[str], str | None]:
    """Names of target, references and weight."""
    pictures = [record.target, *record.references, *([record.loss_map] if record.loss_map else [])]
    files = [Path(str(picture.source)).name for picture in pictures]
    weight = files.pop() if record.loss_map else None
    return files[0], files[1:], weight


def test_the_folder_of_the_page_is_read_as_it_says(tmp_path: Path) -> None:
    for line in example("tree").splitlines()[1:]:
        path = tmp_path / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a caption")
    assert [(record.id, *names(record)[1:]) for record in FolderSource(None, tmp_path).records()] == [
        ("cat", ["cat_ref.png"], None),
        ("dog", ["dog_ref1.png", "dog_ref2.png"], "dog_weight.png"),
        ("trip/boat", ["boat.png"], "boat.png"),
    ]


@pytest.mark.parametrize(("language", "source"), [("jsonl", JsonlSource), ("csv", CsvSource)])
def test_the_tables_of_the_page_are_read(
    tmp_path: Path, language: str, source: type[JsonlSource] | type[CsvSource]
) -> None:
    text = example(language)
    for name in re.findall(r"\w+\.png", text):
        (tmp_path / name).touch()
    path = tmp_path / f"rows.{language}"
    path.write_text(text)
    records = source(None, path).records()
    assert names(records[0]) == ("cat.png", ["cat_before.png"], None)
    assert names(records[-1]) == ("boat.png", ["dog.png", "sea.png"], None)


@pytest.mark.parametrize("options", [FolderOptions, TableOptions, ColumnOptions, DatasetsOptions])
def test_every_option_is_on_the_page_with_its_default(options: type[SourceOptions]) -> None:
    for field in attrs.fields(options):
        default = str(field.default).lower()
        assert f"| `{field.name}` | {default} |" in PAGE


def test_the_layout_of_other_trainers_on_the_page_is_read(tmp_path: Path) -> None:
    for line in example("other").splitlines():
        path = tmp_path / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a caption")
    (record,) = FolderSource(None, tmp_path).records()
    assert names(record) == ("cat.png", ["cat.png"], "cat.png")


@pytest.mark.parametrize(("head", "table"), [("columns", COLUMNS), ("folders", FOLDERS), ("endings", ENDINGS)])
def test_every_name_of_other_trainers_is_on_the_page(head: str, table: Mapping[str, tuple[str, ...]]) -> None:
    """The tables of the page are those of `qframe.data.names`, which the code reads by."""
    rows = re.search(rf"\| part \| {head} \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert rows is not None
    said = dict(re.findall(r"\| (.+?) \| (.+?) \|\n", rows[1]))
    words = {"weight": "loss map"}
    for part, own in table.items():
        if words.get(part, part) in said:  # id and group have no other names
            assert re.findall(r"`(.+?)`", said[words.get(part, part)].split(";")[0]) == list(own)
        else:
            assert own == (part,)


def test_every_format_is_on_the_page() -> None:
    said = PAGE.split("## Pictures")[1].split(".")[0].upper()
    assert all(name in said for name in FORMATS)
