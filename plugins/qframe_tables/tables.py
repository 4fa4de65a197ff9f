"""Reads training records from JSON lines and from CSV.

Paths in a table are relative to the table's file, and must stay in the folder of that file unless
`data.options.allow_outside` is set.
"""

from __future__ import annotations

import csv
import io
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from qframe.data.files import FileSource, Root
from qframe.data.json_lines import json_lines, json_value
from qframe.data.layout import PICTURES
from qframe.data.names import column_meaning
from qframe.data.problems import Problems, printable
from qframe.errors import DataError
from qframe.files.text import decode_text, text_problem
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe_tables.meanings import Meanings, find_meanings
from qframe_tables.options import TableOptions

_LARGEST = 512_000_000
"""The most bytes that a CSV file or a JSON file may have: the file is read into memory at once."""


@attrs.frozen
class _Row:
    """One row of a table, its values not checked against the files yet.

    Attributes:
        number: The line of the file that the row ends on, counted from 1.
        values: The text of each cell by key; under "references" a list of texts.
    """

    number: int
    values: Mapping[str, Any]


class TableSource(FileSource):
    """A data source that makes one record out of each row of a text file; a subclass knows the format of the file."""

    settings: TableOptions

    @staticmethod
    def default_options() -> TableOptions:
        return TableOptions()

    @abstractmethod
    def rows(self, problems: Problems) -> Iterator[_Row]:
        """Yield the rows that can be read, and add a problem to `problems` for each row that cannot be read."""

    def read(self, problems: Problems) -> list[Record]:
        """Read the file, and return its records in the order of the rows.

        Args:
            problems: Collects every fault of a row, so that one faulty row does not stop the reading.

        Raises:
            DataError: `data.path` is no file, or the file has no rows.
        """
        if not self.path.is_file():
            raise DataError(f"data.path: {self.path} is not a file", f"Source {self.name!r} reads one file.")
        folder = self.path.parent if self.settings.folder is None else Path(self.settings.folder).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"data.options.folder: {folder} is not a folder", "Give the folder that the paths begin in."
            )
        root = Root(folder, allow_outside=self.settings.allow_outside)
        records: dict[str, Record] = {}
        for row in self.rows(problems):
            with problems.about(self._id(row)):
                record = self._record(row, root, problems)
                if record is not None and record.id in records:
                    problems.add(record.origin, f"its id {record.id!r} is also that of {records[record.id].origin}")
            if record is not None:
                records[record.id] = record
        if not records and not problems.found:
            raise DataError(f"{self.path}: there are no rows", "Each row is one record.")
        return list(records.values())

    def where(self, number: int) -> str:
        """Return the name that messages give to the row of this number, such as "train.csv, row 7"."""
        return f"{self.path.name}, row {number}"

    def meanings(self, names: Sequence[str], noun: str) -> Meanings:
        """Decide what columns, or keys, of these names are for, with the options of the user."""
        strict = self.settings.other_columns == "refuse"
        return find_meanings(names, self.settings.columns, strict=strict, noun=noun)

    def _id(self, row: _Row) -> str:
        """The id of a row's record: the one that the row gives, else the file's name and the number of the row."""
        return row.values.get("id") or f"{self.path.stem}-{row.number}"

    def _record(self, row: _Row, root: Root, problems: Problems) -> Record | None:
        """Make the record of a row; None if the row has no target or no usable id. Faults are added to `problems`."""
        where = self.where(row.number)
        values = row.values
        prompt = values.get("prompt") or self.settings.prompt or ""
        if (prompt or self.captions.needed) and (problem := text_problem(prompt)) is not None:
            problems.add(where, f"{problem}; write one, or set data.options.prompt for rows that have none")
        for key in ("id", "group"):
            if values.get(key) and (problem := text_problem(values[key], f"its {key}")) is not None:
                problems.add(where, problem)
                return None
        if not values.get("target"):
            problems.add(where, "there is no target")
            return None
        return Record(
            id=self._id(row),
            origin=where,
            prompt=prompt,
            target=self._picture(values["target"], f"{where}, target", root, problems),
            references=tuple(
                self._picture(path, f"{where}, reference {number}", root, problems)
                for number, path in enumerate(values.get("references", ()), 1)
            ),
            loss_map=self._picture(values["weight"], f"{where}, weight", root, problems)
            if values.get("weight")
            else None,
            group=values.get("group") or "",
        )

    def _picture(self, text: str, where: str, root: Root, problems: Problems) -> Picture:
        path = root.folder / text
        if "\\" in text and root.problem(path) is not None:
            path = root.folder / text.replace("\\", "/")  # a table that was written on Windows
        picture = Picture(f"{where} ({printable(text)})", path)
        if (problem := root.problem(path)) is not None:
            problems.add(where, problem, picture, detail=repr(text))
        return picture


class JsonlSource(TableSource):
    """A data source that reads a file with one JSON object per line; each object is one record.

    A file `.json` holds a list of such objects, or one object whose keys are the targets.
    """

    name = "jsonl"

    def rows(self, problems: Problems) -> Iterator[_Row]:
        """Yield a row for each JSON object; what is no valid object becomes a problem instead."""
        whole = self.path.suffix.lower() == ".json"
        found = json_list(self.path, problems, self.where) if whole else json_lines(self.path, problems, self.where)
        for number, row in found:
            try:
                yield _Row(number, self._values(row))
            except ValueError as error:
                for line in str(error).split("\n"):
                    problems.add(self.where(number), line)

    def _values(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a JSON object by part of a record, its references as a list under "references".

        Raises:
            ValueError: A key is unknown, a value has another type than its part allows, or two keys mean the same. The
                message has a line for each problem.
        """
        # A key without a value is as good as none, so that it does not compete with another of the same meaning.
        empty: tuple[object, ...] = (None, "", [])
        found = self.meanings([key for key in row if row[key] not in empty or column_meaning(key) is None], "key")
        problems = [text for text in found.problems if not text.startswith("there is no column")]
        values: dict[str, Any] = {}
        for part, key in found.parts.items():
            value = row.get(key)
            if part == "id" and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if value is not None and not isinstance(value, str):
                problems.append(f"{key!r} is {_shown(value)}, expected a string")
            values[part] = value
        references: list[str] = []
        for key in found.references:
            value = row.get(key)
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                references += value
            elif value is not None and not isinstance(value, str):
                problems.append(f"{key!r} is {_shown(value)}, expected a string or a list of strings")
            elif value:
                references.append(value)
        if problems:
            raise ValueError("\n".join(problems))
        return {**values, "references": references}


class CsvSource(TableSource):
    """A data source that reads a CSV file whose first row names the columns.

    References are in a column "reference", or in several columns "reference1", "reference2", ...
    """

    name = "csv"

    def rows(self, problems: Problems) -> Iterator[_Row]:
        """Yield each row of cells below the header; a row with too many or too few cells becomes a problem instead.

        A row's number is the line that it ends on; the header begins on line 1.
        """
        try:
            text = whole_text(self.path)
        except ValueError as error:
            problems.add(self.path.name, str(error))
            return
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            found = self.meanings(header, "column")
            if wrong := _header_problems(header, found):
                for problem in wrong:
                    problems.add(self.where(1), problem)
                return
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    what = "another number of cells than the header"
                    problems.add(self.where(reader.line_num), what, detail=f"{len(cells)}, not {len(header)}")
                    continue
                yield _Row(reader.line_num, _from_cells(header, cells, found))
        except csv.Error as error:
            problems.add(self.where(reader.line_num), f"not valid CSV ({error}); the rest was not read")


def json_list(path: Path, problems: Problems, where: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) for every object in a JSON file that holds a list, or an object with one for each target.

    Objects are counted from 1. A file of another form is a problem.
    """
    try:
        found = json_value(whole_text(path))
    except ValueError as error:
        problems.add(path.name, str(error))
        return
    rows = found if isinstance(found, list) else [found]
    if isinstance(found, dict) and found and all(isinstance(value, dict) for value in found.values()):
        rows = [{"target": _with_suffix(path.parent, key), **value} for key, value in found.items()]
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(where(number), f"expected an object {{...}}, got {type(row).__name__}")


def _with_suffix(folder: Path, key: str) -> str:
    """The file that a key of kohya's metadata names, in which the suffix may be missing."""
    if "\0" in key or (folder / key).is_file():
        return key
    return next((key + suffix for suffix in PICTURES if (folder / (key + suffix)).is_file()), key)


def whole_text(path: Path) -> str:
    """Read a file of text into memory. Raises ValueError if it is too large, or is not UTF-8."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"larger than {_LARGEST} bytes")
    return decode_text(path.read_bytes())


def _header_problems(header: list[str], found: Meanings) -> list[str]:
    """Say why the first row of a CSV file cannot name its columns."""
    if not header:
        return ["the file is empty; its first row names the columns"]
    problems = [f"{text}; the first row names the columns" for text in found.problems]
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        problems.append(f"columns are named twice: {', '.join(twice)}")
    if "target" not in found.parts:
        problems.append("there is no column 'target'; say which holds it: data.options.columns.target")
    return problems


def _from_cells(header: list[str], cells: list[str], found: Meanings) -> dict[str, Any]:
    """Return the values of a row of CSV by part of a record, its references as a list under "references".

    A cell of references may hold several paths as a JSON list.
    """
    row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    values = {part: row[column] for part, column in found.parts.items()}
    references = [path for column in found.references for path in _paths(row[column])]
    return {**values, "references": references}


def _paths(cell: str) -> list[str]:
    if cell.startswith("[") and cell.endswith("]"):
        try:
            listed = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
        if all(isinstance(item, str) for item in listed):
            return [item for item in listed if item]
    return [cell] if cell else []


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
