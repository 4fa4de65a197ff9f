"""Parquet files and Hugging Face data sets: records of columns, pictures read when they are asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qframe.cache.keys import PictureDigests
from qframe.errors import ConfigError, DataError, QframeError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_picture
from qframe.plugins.distribution import install_hint
from qframe_tables.columns import ColumnSource
from qframe_tables.hub import DatasetsSource
from qframe_tables.options import ColumnOptions, DatasetsOptions
from qframe_tables.parquet import ParquetRows, ParquetSource


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def shades(record: Record) -> list[int]:
    """What target and references show."""
    return [open_picture(picture).getpixel((0, 0))[0] for picture in (record.target, *record.references)]  # type: ignore[index]


def stored(shade: int | None) -> dict[str, Any] | None:
    return None if shade is None else {"bytes": png(shade), "path": f"{shade}.png"}


Make = Callable[..., ColumnSource]
ROWS: dict[str, list[Any]] = {
    "target": [stored(1), stored(2), stored(3)],
    "prompt": ["one", "two", "three"],
    "references": [[], [stored(11)], [stored(12), stored(13)]],
    "mask": [None, stored(255), None],
    "group": ["a", None, "b"],
    "unrelated": [1.5, 2.5, 3.5],
}


def parquet(
    folder: Path, rows: Mapping[str, list[Any]] = ROWS, name: str = "rows.parquet", **options: Any
) -> ColumnSource:
    pq.write_table(pa.table(dict(rows)), folder / name, row_group_size=2)
    return ParquetSource(ColumnOptions(**options), folder / name)


def on_disk(folder: Path, rows: Mapping[str, list[Any]] = ROWS, **options: Any) -> ColumnSource:
    found = datasets.Dataset.from_dict(dict(rows))
    for name in ("target", "mask"):
        if name in rows and isinstance(rows[name][0] or rows[name][-1] or {}, dict):
            found = found.cast_column(name, datasets.Image())
    found.save_to_disk(str(folder / "saved"))
    return DatasetsSource(DatasetsOptions(**options), folder / "saved")


SOURCES = pytest.mark.parametrize("source", [parquet, on_disk])


@SOURCES
def test_rows_are_records_with_any_number_of_references(tmp_path: Path, source: Make) -> None:
    records = source(tmp_path).records()
    assert [record.prompt for record in records] == ["one", "two", "three"]
    assert [shades(record) for record in records] == [[1], [2, 11], [3, 12, 13]]
    assert [record.loss_map is not None for record in records] == [False, True, False]
    assert [record.group for record in records] == ["a", "", "b"]
    assert len({record.id for record in records}) == 3
    assert records[2].references[1].origin.endswith("row 2, references 2")


@SOURCES
def test_listing_keeps_no_picture(tmp_path: Path, source: Make) -> None:
    records = source(tmp_path).records()
    assert all(callable(picture.source) for record in records for picture in (record.target, *record.references))


@SOURCES
def test_columns_of_other_names_are_said_in_the_options(tmp_path: Path, source: Make) -> None:
    rows = {
        "image": [stored(1), stored(2)],
        "text": ["one", "two"],
        "before": [stored(3), None],
        "style": [stored(4), stored(5)],
        "key": [7, 8],
    }
    columns = {"target": "image", "prompt": "text", "reference1": "before", "reference2": "style", "id": "key"}
    records = source(tmp_path, rows, columns=columns).records()
    assert [shades(record) for record in records] == [[1, 3, 4], [2, 5]]
    assert [record.id for record in records] == ["7", "8"]
    with pytest.raises(DataError, match=r"there is no column 'picture'.*\n.*image, text, before, style, key"):
        source(tmp_path, rows, columns={"target": "picture"}).records()
    with pytest.raises(DataError, match="unknown key 'targte'"):
        source(tmp_path, rows, columns={"targte": "image"}).records()
    assert [shades(record) for record in source(tmp_path, rows).records()] == [[1, 3], [2]]
    renamed = {("photo" if name == "image" else name): cells for name, cells in rows.items()}
    with pytest.raises(DataError, match="there is no column 'target'"):
        source(tmp_path, renamed).records()


@SOURCES
def test_usual_names_are_read_only_where_there_is_no_column_target(tmp_path: Path, source: Make) -> None:
    """A table that has a target is read as before: its column `source` may name a photographer."""
    rows = {"target": [stored(1)], "prompt": ["one"], "source": ["a photographer"], "image": [stored(2)]}
    assert [shades(record) for record in source(tmp_path, rows).records()] == [[1]]


@SOURCES
def test_two_columns_that_may_be_the_target_are_not_chosen_from(tmp_path: Path, source: Make) -> None:
    rows = {"image": [stored(1)], "edited_image": [stored(2)], "edit_prompt": ["p"]}
    with pytest.raises(DataError, match=r"has both 'image' and 'edited_image'.*data.options.columns.target"):
        source(tmp_path, rows).records()
    said = source(tmp_path, rows, columns={"target": "edited_image", "prompt": "edit_prompt", "reference": "image"})
    assert [shades(record) for record in said.records()] == [[2, 1]]


@pytest.mark.parametrize("cell", [lambda shade: png(shade), lambda shade: f"{shade}.png"], ids=["bytes", "paths"])
def test_pictures_may_be_bytes_or_paths(tmp_path: Path, cell: Callable[[int], Any]) -> None:
    for shade in (1, 2, 3):
        (tmp_path / f"{shade}.png").write_bytes(png(shade))
    rows = {"target": [cell(1), cell(2)], "prompt": ["a", "b"], "control": [[cell(3)], [cell(1), cell(3)]]}
    assert [shades(record) for record in parquet(tmp_path, rows).records()] == [[1, 3], [2, 1, 3]]


@SOURCES
def test_every_bad_row_is_told_at_once(tmp_path: Path, source: Make) -> None:
    rows = {"target": [stored(1), None, stored(3)], "prompt": ["", "two", "three"], "id": ["x", "y", "x"]}
    with pytest.raises(DataError) as caught:
        source(tmp_path, rows).records()
    message = caught.value.message
    assert "3 problems" in message
    assert "row 0: the prompt is empty" in message
    assert "row 1: there is no target" in message
    assert "row 2: its id 'x' is also that of" in message


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out.png").write_bytes(png(1))
    rows = {"target": ["../out.png", "none.png"], "prompt": ["a", "b"]}
    with pytest.raises(DataError, match=r"(?s)leads outside of .*'\.\./out\.png'.*no such file.*'none\.png'"):
        parquet(tmp_path / "data", rows).records()
    hidden = {"target": [{"bytes": None, "path": "../out.png"}], "prompt": ["a"]}
    (record,) = parquet(tmp_path / "data", hidden).records()
    with pytest.raises(DataError, match=r"row 0, target: '\.\./out\.png': leads outside"):
        record.target.read()
    (allowed,) = parquet(tmp_path / "data", hidden, allow_outside=True).records()
    assert shades(allowed) == [1]


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    for number in range(3):
        rows = {"target": [stored(10 * number + i) for i in range(5)], "prompt": [f"{number} {i}" for i in range(5)]}
        parquet(tmp_path, rows, f"part-{number}.parquet")
    records = ParquetSource(None, tmp_path).records()
    assert [shades(record)[0] for record in reversed(records)] == [10 * n + i for n in range(3) for i in range(5)][::-1]
    parquet(tmp_path, {"target": [stored(1)], "text": ["x"]}, "part-3.parquet")
    with pytest.raises(DataError, match=r"part-3\.parquet: its columns are target, text; those of part-0\.parquet"):
        ParquetSource(None, tmp_path).records()


def test_only_a_few_row_groups_are_in_memory(tmp_path: Path) -> None:
    rows = {"target": [stored(i) for i in range(40)], "prompt": ["x"] * 40}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet", row_group_size=4)
    table = ParquetRows([tmp_path / "rows.parquet"])
    for row in range(40):
        assert table.cell(row, "target")["path"] == f"{row}.png"
    assert table._group.cache_info().currsize <= 4
    assert table._group.cache_info().misses == 10


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing PAR1"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as Parquet"):
        ParquetSource(None, tmp_path / "rows.parquet").records()


def test_columns_that_hold_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds int64, expected pictures"):
        parquet(tmp_path, {"target": [1, 2], "prompt": ["a", "b"]}).records()
    with pytest.raises(DataError, match="holds double, expected text"):
        parquet(tmp_path, {"target": [stored(1)], "prompt": [1.5]}).records()
    with pytest.raises(DataError, match="has both 'weight' and 'mask'"):
        parquet(tmp_path, {**ROWS, "weight": ROWS["mask"]}).records()


def test_a_column_that_nobody_filled_is_nothing(tmp_path: Path) -> None:
    rows = {"target": [stored(1)], "prompt": ["a"], "mask": [None], "control": [None], "group": [None]}
    (record,) = parquet(tmp_path, rows).records()
    assert (record.loss_map, record.references, record.group) == (None, (), "")


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"target": [stored(i)], "prompt": [name]}) for i, name in enumerate("ab")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    (record,) = DatasetsSource(DatasetsOptions(split="b"), tmp_path / "saved").records()
    assert record.prompt == "b"
    with pytest.raises(DataError, match=r"no split 'train'\n.*a, b"):
        DatasetsSource(None, tmp_path / "saved").records()


def test_a_shuffled_data_set_keeps_rows_together(tmp_path: Path) -> None:
    found = datasets.Dataset.from_dict(
        {"target": [stored(i) for i in range(20)], "prompt": [str(i) for i in range(20)]}
    )
    found.cast_column("target", datasets.Image()).shuffle(seed=1).select(range(7)).save_to_disk(str(tmp_path / "s"))
    records = DatasetsSource(None, tmp_path / "s").records()
    assert [shades(record)[0] for record in records] == [int(record.prompt) for record in records]


def test_a_local_folder_is_opened_by_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set", ROWS, "train.parquet")
    records = DatasetsSource(None, tmp_path / "set").records()
    assert [shades(record) for record in records] == [[1], [2, 11], [3, 12, 13]]


def test_what_cannot_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: cannot be opened as a data set"):
        DatasetsSource(None, tmp_path / "empty").records()
    with pytest.raises(ConfigError, match="both set"):
        DatasetsSource(DatasetsOptions(repo="a/b"), tmp_path)
    with pytest.raises(DataError, match="no path is given"):
        DatasetsSource(None, None)


@pytest.mark.parametrize(("module", "source"), [("pyarrow.parquet", parquet), ("datasets", on_disk)])
def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: Make
) -> None:
    made = source(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(QframeError) as caught:
        made.records()
    assert isinstance(caught.value, ConfigError)
    assert caught.value.hint == f"Install it: {install_hint(module.partition('.')[0].replace('pyarrow', 'parquet'))}"


def test_what_parquet_holds_is_cached_like_files(tmp_path: Path) -> None:
    """Equal bytes have equal keys, wherever they lie."""
    records = parquet(tmp_path, {"target": [stored(1), stored(2)], "prompt": ["a", "b"]}).records()
    for number, record in enumerate(records, 1):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        assert record.target.digest() == Picture("file", tmp_path / f"{number}.png").digest()
        assert PictureDigests()(record.target) == record.target.digest()


def test_a_pipe_with_the_name_of_a_table_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    parquet(tmp_path, ROWS)
    os.mkfifo(tmp_path / "more.parquet")
    with pytest.raises(DataError, match=r"more\.parquet: is not a file"):
        ParquetSource(None, tmp_path).records()
