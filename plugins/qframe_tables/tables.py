"""Reads training records from JSON lines and from CSV.

Paths in a table are relative to the table's file, and must stay in the folder of that file unless
`data.options.allow_outside` is set.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from qframe.data.files import FileSource, Problems, Root, text_problem
from qframe.data.json_lines import json_lines
from qframe.errors import DataError
from qframe.files.text import decode_text
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe_tables.options import TableOptions

_LARGEST_CSV = 512_000_000
"""The most bytes that a CSV file may have: the file is read into memory at once."""
_KEYS = ("target", "prompt", "references", "control", "weight", "mask", "id", "group")
_COLUMNS = ("target", "prompt", "reference", "control", "weight", "mask", "id", "group")
_NUMBERED = re.compile(r"(?:reference|control)[1-9]\d*")


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
        root = Root(self.path.parent, allow_outside=self.settings.allow_outside)
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

    def _id(self, row: _Row) -> str:
        """The id of a row's record: the one that the row gives, else the file's name and the number of the row."""
        return row.values.get("id") or f"{self.path.stem}-{row.number}"

    def _record(self, row: _Row, root: Root, problems: Problems) -> Record | None:
        """Make the record of a row; None if the row has no target. Every fault is added to `problems`."""
        where = self.where(row.number)
        values = row.values
        prompt = values.get("prompt") or self.settings.prompt or ""
        if (problem := text_problem(prompt)) is not None:
            problems.add(where, f"{problem}; write one, or set data.options.prompt for rows that have none")
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
            loss_map=self._loss_map(values, where, root, problems),
            group=values.get("group") or "",
        )

    def _loss_map(self, values: Mapping[str, Any], where: str, root: Root, problems: Problems) -> Picture | None:
        given = [key for key in ("weight", "mask") if values.get(key)]
        if len(given) > 1:
            problems.add(where, "has both 'weight' and 'mask', which mean the same")
        return self._picture(values[given[0]], f"{where}, {given[0]}", root, problems) if given else None

    def _picture(self, text: str, where: str, root: Root, problems: Problems) -> Picture:
        path = root.folder / text
        picture = Picture(f"{where} ({text})", path)
        if (problem := root.problem(path)) is not None:
            problems.add(where, f"{text!r}: {problem}", picture)
        return picture


class JsonlSource(TableSource):
    """A data source that reads a file with one JSON object per line; each object is one record."""

    name = "jsonl"

    def rows(self, problems: Problems) -> Iterator[_Row]:
        """Yield a row for each JSON object; a line that is no valid object becomes a problem instead."""
        for number, row in json_lines(self.path, problems, self.where):
            try:
                yield _Row(number, _checked(row))
            except ValueError as error:
                problems.add(self.where(number), str(error))


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
            if self.path.stat().st_size > _LARGEST_CSV:
                raise ValueError(f"larger than {_LARGEST_CSV} bytes")
            text = decode_text(self.path.read_bytes())
        except ValueError as error:
            problems.add(self.path.name, str(error))
            return
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if (problem := _header_problem(header)) is not None:
                problems.add(self.where(1), problem)
                return
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    problems.add(self.where(reader.line_num), f"{len(cells)} cells, the header has {len(header)}")
                    continue
                yield _Row(reader.line_num, _from_cells(header, cells))
        except csv.Error as error:
            problems.add(self.where(reader.line_num), f"not valid CSV ({error}); the rest was not read")


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Check the keys and types of a JSON object, and return it with its references as a list under "references".

    Raises:
        ValueError: A key is unknown, a value has another type than its key allows, or references are given twice.
    """
    for key, value in row.items():
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}{_nearest(key, _KEYS)}")
        plural = key in ("references", "control")
        if plural and isinstance(value, list) and all(isinstance(item, str) for item in value):
            continue
        if value is not None and not isinstance(value, str):
            expected = "a string or a list of strings" if plural else "a string"
            raise ValueError(f"{key!r} is {_shown(value)}, expected {expected}")
    if row.get("references") and row.get("control"):
        raise ValueError("has both 'references' and 'control', which mean the same")
    references = row.get("references") or row.get("control") or []
    return {**row, "references": [references] if isinstance(references, str) else references}


def _header_problem(header: list[str]) -> str | None:
    """Say why the first row of a CSV file cannot name its columns; None if it can."""
    unknown = [name for name in header if name not in _COLUMNS and not _NUMBERED.fullmatch(name)]
    if not header:
        return "the file is empty; its first row names the columns"
    if unknown:
        return f"unknown column {unknown[0]!r}{_nearest(unknown[0], _COLUMNS)}; the first row names the columns"
    if len(set(header)) < len(header):
        return f"columns are named twice: {', '.join(header)}"
    if "target" not in header:
        return "there is no column 'target'"
    return None


def _from_cells(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Join a row of CSV with its header; the references are in the order of the numbers in their columns' names."""
    values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    numbered = sorted((name for name in header if name.startswith(("reference", "control"))), key=_column_number)
    return {**values, "references": [values[name] for name in numbered if values[name]]}


def _column_number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
