"""Rows of JSON lines and CSV: what they say, and every mistake told with its row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qframe.data.files import FileSource
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe_tables.options import TableOptions
from qframe_tables.tables import CsvSource, JsonlSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for name in ("a.png", "b.png", "in/c.png", "w.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (tmp_path / "outside.png").touch()
    return data


def source(root: Path, text: str | bytes, suffix: str, **options: object) -> FileSource:
    path = root / f"rows{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    kind = JsonlSource if suffix == ".jsonl" else CsvSource
    return kind(TableOptions(**options), path)  # type: ignore[arg-type]


def jsonl(root: Path, *rows: object, **options: object) -> list[Record]:
    return list(source(root, "".join(json.dumps(row) + "\n" for row in rows), ".jsonl", **options).records())


def csv(root: Path, text: str | bytes, **options: object) -> list[Record]:
    return list(source(root, text, ".csv", **options).records())


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ('{"target": "a.png", "prompt": "x", "mask": "w.png"}', ".jsonl"),
        ("target,prompt,mask\na.png,x,w.png\n", ".csv"),
    ],
)
def test_a_mask_is_a_weight_by_another_name(root: Path, text: str, suffix: str) -> None:
    (record,) = source(root, text, suffix).records()
    assert record.loss_map is not None
    assert record.loss_map.source == root / "w.png"


def test_mask_and_weight_together_are_refused(root: Path) -> None:
    text = '{"target": "a.png", "prompt": "x", "mask": "w.png", "weight": "w.png"}'
    assert "row 1: has both 'mask' and 'weight'" in problems(root, text, ".jsonl")


def problems(root: Path, text: str | bytes, suffix: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        source(root, text, suffix, **options).records()
    return caught.value.message


def origins(record: Record) -> list[str]:
    return [picture.origin for picture in record.references]


def test_a_json_row_is_a_record(root: Path) -> None:
    row = {"target": "a.png", "prompt": "make it blue", "references": ["b.png", "in/c.png"], "weight": "w.png"}
    (record,) = jsonl(root, {**row, "id": "first", "group": "colours"})
    assert (record.id, record.prompt, record.group) == ("first", "make it blue", "colours")
    assert record.target.source == root / "a.png"
    assert [picture.source for picture in record.references] == [root / "b.png", root / "in/c.png"]
    assert record.loss_map is not None
    assert record.origin == "rows.jsonl, row 1"
    assert origins(record)[1] == "rows.jsonl, row 1, reference 2 (in/c.png)"


@pytest.mark.parametrize("key", ["control", "references"])
def test_one_reference_needs_no_list(root: Path, key: str) -> None:
    (record,) = jsonl(root, {"target": "a.png", "prompt": "p", key: "b.png"})
    assert [picture.source for picture in record.references] == [root / "b.png"]


def test_rows_without_an_id_are_called_by_their_line(root: Path) -> None:
    text = '{"target": "a.png", "prompt": "p"}\n\n{"target": "b.png", "prompt": "p"}\n'
    assert [record.id for record in source(root, text, ".jsonl").records()] == ["rows-1", "rows-3"]


def test_a_csv_row_is_a_record(root: Path) -> None:
    text = 'target,prompt,reference1,reference2,weight,group\na.png,"blue, and\nround",b.png,in/c.png,w.png,g\n'
    (record,) = csv(root, text)
    assert record.prompt == "blue, and\nround"
    assert [picture.source for picture in record.references] == [root / "b.png", root / "in/c.png"]
    assert (record.group, record.loss_map is not None) == ("g", True)


def test_empty_cells_are_nothing(root: Path) -> None:
    (one, two) = csv(root, "target,prompt,control,weight\na.png,p,,\nb.png,q,a.png,\n")
    assert (one.references, one.loss_map) == ((), None)
    assert len(two.references) == 1


def test_numbered_columns_are_ordered_by_number(root: Path) -> None:
    header = ",".join(f"reference{number}" for number in range(10, 0, -1))
    cells = ",".join("b.png" if number > 2 else ("a.png" if number == 1 else "w.png") for number in range(10, 0, -1))
    (record,) = csv(root, f"target,prompt,{header}\na.png,p,{cells}\n")
    assert [picture.source.name for picture in record.references[:3]] == ["a.png", "w.png", "b.png"]  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(root: Path, suffix: str) -> None:
    text = '{"target": "a.png", "prompt": "é"}\n' if suffix == ".jsonl" else "target,prompt\na.png,é\n"
    (record,) = source(root, b"\xef\xbb\xbf" + text.encode(), suffix).records()
    assert record.prompt == "é"


def test_a_prompt_for_all_serves_rows_without_one(root: Path) -> None:
    (record,) = jsonl(root, {"target": "a.png"}, prompt="in my style")
    assert record.prompt == "in my style"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "row 2: there is no target"),
        ({"target": "a.png"}, "row 2: the prompt is empty"),
        ({"target": "a.png", "prompt": "\ud800"}, "row 2: the prompt holds half a character"),
        ({"target": "gone.png", "prompt": "p"}, "row 2, target: no such file"),
        ({"target": "in", "prompt": "p"}, "row 2, target: not a file"),
        ({"target": "../outside.png", "prompt": "p"}, "row 2, target: leads outside"),
        ({"target": "/etc/passwd", "prompt": "p"}, "leads outside"),
        ({"target": "a.png\0", "prompt": "p"}, "row 2, target: embedded null byte"),
        ({"target": "\ud800.png", "prompt": "p"}, "row 2, target: 'utf-8' codec"),
        (
            {"target": "a.png", "prompt": "p", "references": ["b.png", "no.png"]},
            "row 2, reference 2: no such file or directory ('no.png')",
        ),
        ({"target": "a.png", "prompt": "p", "weight": "no.png"}, "row 2, weight: no such file or directory ('no.png')"),
        ({"target": "a.png", "promt": "p"}, "row 2: unknown key 'promt' (did you mean 'prompt'?)"),
        ({"target": 7, "prompt": "p"}, "row 2: 'target' is 7, expected a string"),
        ({"target": "a.png", "prompt": "p", "references": [1]}, "'references' is [1], expected a string or a list"),
        ({"target": "a.png", "prompt": "p", "references": "b.png", "control": "b.png"}, "mean the same"),
        (["a.png"], "row 2: expected an object {...}, got list"),
        ({"target": "b.png", "prompt": "p", "id": "first"}, "id 'first' is also that of rows.jsonl, row 1"),
    ],
)
def test_a_mistake_is_told_with_the_row(root: Path, row: object, message: str) -> None:
    text = '{"target": "a.png", "prompt": "p", "id": "first"}\n' + json.dumps(row) + "\n"
    assert message in problems(root, text, ".jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "row 1: not valid JSON: "),
        (b'{"target": "caf\xe9.png"}', "row 1: not UTF-8 (byte 15)"),
        (b'{"target": "a.png", "target": "b.png"}', "row 1: 'target' is there twice"),
        (b"[" * 100_000, "row 1: nested too deeply"),
        (b'{"prompt": ' + b"9" * 10_000 + b"}", "row 1: "),
        (b"x" * 1_000_001, "row 1: longer than 1000000 bytes"),
    ],
)
def test_a_line_that_is_no_json_is_reported(root: Path, line: bytes, message: str) -> None:
    assert message in problems(root, line + b"\n", ".jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("prompt\np\n", "there is no column 'target'"),
        ("target,promt\na.png,p\n", "unknown column 'promt' (did you mean 'prompt'?)"),
        ("target,target\na.png,b.png\n", "columns are named twice"),
        ("target,prompt\na.png\n", "row 2: another number of cells than the header (1, not 2)"),
        ('target,prompt\na.png,"p\n', "not valid CSV"),
        ("target,prompt\na.png,x\n" + "b.png," + "y" * 200_000 + "\n", "row 3: not valid CSV (field larger"),
        ("target,prompt\ngone.png,p\n", "row 2, target: no such file"),
        (b"target,prompt\na.png,caf\xe9\n", "not UTF-8 (byte 23)"),
    ],
)
def test_a_mistake_in_a_csv_is_told_with_the_row(root: Path, text: str | bytes, message: str) -> None:
    assert message in problems(root, text, ".csv")


def test_all_problems_are_told_at_once(root: Path) -> None:
    text = "".join(json.dumps({"target": f"{number}.png"}) + "\n" for number in range(40))
    message = problems(root, text, ".jsonl")
    assert "80 problems" in message
    assert "40 times: the prompt is empty" in message
    assert "40 times: no such file or directory: rows.jsonl, row 1, target ('0.png'), " in message
    assert len(message.splitlines()) == 3


def test_links_are_judged_by_where_they_lead(root: Path) -> None:
    (root / "out.png").symlink_to(root.parent / "outside.png")
    (root / "in.png").symlink_to("a.png")
    (root / "folder").symlink_to(root.parent)
    rows = [{"target": name, "prompt": "p"} for name in ("in.png", "out.png", "folder/outside.png")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    message = problems(root, text, ".jsonl")
    assert "2 problems" in message
    assert len(jsonl(root, *rows, allow_outside=True)) == 3


def test_no_rows_is_an_error(root: Path) -> None:
    assert "there are no rows" in problems(root, "\n\n", ".jsonl")
    assert "there are no rows" in problems(root, "target,prompt\n", ".csv")


def test_a_folder_is_no_table(root: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        JsonlSource(None, root).records()


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
@settings(max_examples=150, deadline=5000)
def test_no_table_makes_reading_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("t")
    for suffix in (".jsonl", ".csv"):
        for prefix in (b"", b"target,prompt\n"):
            with pytest.raises(DataError):
                source(root, prefix + data, suffix).records()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a.png", ".", ".."]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["target", "prompt", "references", "control", "weight", "id", "group"]) | st.text(max_size=5)


@given(st.dictionaries(keys, values, max_size=5))
@settings(max_examples=150, deadline=5000)
def test_any_json_row_is_a_record_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, row: object) -> None:
    root = tmp_path_factory.mktemp("t")
    (root / "a.png").touch()
    try:
        jsonl(root, row)
    except DataError as error:
        assert "rows.jsonl" in error.message  # noqa: PT017 (a good row is as well)
