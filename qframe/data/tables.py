"""Tables of records: JSON lines and CSV. Paths in them are relative to the file, and stay in its folder."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from qframe.data.files import FileSource, Problems, Root, decode, text_problem
from qframe.data.options import TableOptions
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture

_LONGEST_LINE = 1_000_000
_LARGEST_CSV = 512_000_000
_KEYS = ("target", "prompt", "references", "control", "weight", "mask", "id", "group")
_COLUMNS = ("target", "prompt", "reference", "control", "weight", "mask", "id", "group")
_NUMBERED = re.compile(r"(?:reference|control)[1-9]\d*")


@attrs.frozen
class _Row:
    """A row as it was read: strings, and a list of strings under "references"."""

    number: int
    values: Mapping[str, Any]


class TableSource(FileSource):
    """Records from the rows of one file."""

    settings: TableOptions

    @staticmethod
    def default_options() -> TableOptions:
        return TableOptions()

    @abstractmethod
    def rows(self, problems: Problems) -> Iterator[_Row]:
        """The rows that can be read; the others go to `problems`."""

    def read(self, problems: Problems) -> list[Record]:
        """See `FileSource.read`; in the order of the rows."""
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
        """How messages name a row."""
        return f"{self.path.name}, row {number}"

    def _id(self, row: _Row) -> str:
        return row.values.get("id") or f"{self.path.stem}-{row.number}"

    def _record(self, row: _Row, root: Root, problems: Problems) -> Record | None:
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
            loss_map=self._weight(values, where, root, problems),
            group=values.get("group") or "",
        )

    def _weight(self, values: Mapping[str, Any], where: str, root: Root, problems: Problems) -> Picture | None:
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
    """One JSON object per line."""

    name = "jsonl"

    def rows(self, problems: Problems) -> Iterator[_Row]:
        """See `TableSource.rows`; numbers are lines, from 1."""
        for number, row in json_lines(self.path, problems, self.where):
            try:
                yield _Row(number, _checked(row))
            except ValueError as error:
                problems.add(self.where(number), str(error))


class CsvSource(TableSource):
    """A table with a header. Several references have columns reference1, reference2, ..."""

    name = "csv"

    def rows(self, problems: Problems) -> Iterator[_Row]:
        """See `TableSource.rows`; numbers are lines of the file, from 1, the header's among them."""
        try:
            if self.path.stat().st_size > _LARGEST_CSV:
                raise ValueError(f"larger than {_LARGEST_CSV} bytes")
            text = decode(self.path.read_bytes())
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


def json_lines(path: Path, problems: Problems, where: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with one per line, and their numbers, from 1; the others go to `problems`."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                problems.add(where(number), f"longer than {_LONGEST_LINE} bytes; the rest was not read")
                return
            try:
                text = decode(line).strip()
                if text:
                    yield number, json_object(text)
            except ValueError as error:
                problems.add(where(number), str(error))


def json_object(text: str) -> dict[str, Any]:
    """The JSON object of a text. ValueError says what is wrong with it."""
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object {{...}}, got {type(value).__name__}")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key!r} is there twice")
    return dict(pairs)


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its references as a list. ValueError names an unknown key, or a value of another type."""
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
