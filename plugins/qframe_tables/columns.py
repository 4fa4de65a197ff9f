"""Makes training records out of the columns of Arrow tables, without reading a picture before somebody opens it.

Rows are counted from 0. pyarrow is an optional extra, so it is imported only inside functions that read a table.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from qframe.data.files import FileSource, Root
from qframe.data.problems import Problems
from qframe.errors import DataError
from qframe.files.text import text_problem
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe_tables.meanings import Meanings, find_meanings
from qframe_tables.options import ColumnOptions

_TEXTS = ("prompt", "id", "group")
_PICTURES = ("target", "weight", "mask")
_LISTS = ("references", "control")
_NUMBERED = re.compile(r"(?:reference|control)[1-9]\d{0,3}|reference")


class Rows(Protocol):
    """A table whose rows are read piece by piece, so that the table may be larger than memory."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all columns of the table."""

    def tables(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield all rows of these columns in order, as one `pyarrow.Table` after another."""

    def cell(self, row: int, column: str) -> Any:
        """Read one cell, and return its value as a Python object.

        Args:
            row: The number of the row, counted from 0.
            column: The name of the column.
        """


class ColumnSource(FileSource):
    """A source that makes one record out of each row of an Arrow table; a subclass opens the table.

    Each part of a record ("target", "prompt", "reference1", ...) is read from the column of that name, unless
    `data.options.columns` names another column for that part.
    """

    settings: ColumnOptions

    @staticmethod
    def default_options() -> ColumnOptions:
        return ColumnOptions()

    @abstractmethod
    def open_rows(self) -> Rows:
        """Open the table.

        Raises:
            ConfigError: A library that the table is read with is not installed.
            DataError: The table cannot be opened.
        """

    @property
    @abstractmethod
    def root(self) -> Path:
        """The folder that paths in cells are relative to.

        Paths may lead out of this folder only if `data.options.allow_outside` is set.
        """

    def read(self, problems: Problems) -> list[Record]:
        """Read the table, and return its records in the order of the rows.

        Args:
            problems: Collects every fault of a row, so that one faulty row does not stop the reading.

        Raises:
            DataError: The table cannot be opened, has no rows, or has a column that cannot be used.
        """
        rows = self.open_rows()
        columns = self._columns(rows.names)
        root = Root(self.root, allow_outside=self.settings.allow_outside)
        records: dict[str, Record] = {}
        row = 0
        for table in rows.tables(list(columns.values())):
            found = {key: _listed(table.column(name), key) for key, name in columns.items()}
            for place in range(table.num_rows):
                values = {key: listed[place] for key, listed in found.items()}
                id_ = values.get("id") or f"{self.path.stem}-{row}"
                with problems.about(id_):
                    record = _Row(self, rows, columns, root, row).record(id_, values, problems)
                    if record is not None and id_ in records:
                        problems.add(record.origin, f"its id {id_!r} is also that of {records[id_].origin}")
                if record is not None:
                    records[id_] = record
                row += 1
        if not records and not problems.found:
            raise DataError(f"{self.path}: there are no rows", "Each row is one record.")
        return list(records.values())

    def where(self, row: int) -> str:
        """Return the name that messages give to a row, such as "train.parquet, row 7"; `row` is counted from 0."""
        return f"{self.path.name}, row {row}"

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        """Choose the column that each key of a record is read from.

        A table that has a column "target", or whose target the user names, is read by qframe's own names alone. In any
        other table the usual names of other trainers are understood, too.

        Raises:
            DataError: `data.options.columns` has an unknown key or names a column that does not exist, there is no
                column for the target, or two columns mean the same.
        """
        given = self.settings.columns or {}
        here = f"The columns are: {', '.join(names)}."
        found = self._usual(names) if "target" not in (*given, *names) else self._own(names)
        if "target" not in found:
            raise DataError(
                f"{self.path}: there is no column 'target'", f"{here} Say which: data.options.columns.target = 'NAME'."
            )
        for one, other in (("weight", "mask"), ("references", "control")):
            if one in found and other in found:
                raise DataError(f"{self.path}: has both {one!r} and {other!r}, which mean the same", "Leave one out.")
        return found

    def _own(self, names: Sequence[str]) -> dict[str, str]:
        given, known = self.settings.columns or {}, (*_TEXTS, *_PICTURES, *_LISTS)
        self._refuse(find_meanings(names, given, strict=False, usual=False), names)
        taken = set(given.values())
        own = {name: name for name in names if name not in taken and (name in known or _NUMBERED.fullmatch(name))}
        return own | dict(given)

    def _usual(self, names: Sequence[str]) -> dict[str, str]:
        found = find_meanings(names, self.settings.columns, strict=False)
        self._refuse(found, names)
        single = len(found.references) == 1
        keys = ["references"] if single else [f"reference{place}" for place in range(1, len(found.references) + 1)]
        return {**found.parts, **dict(zip(keys, found.references, strict=True))}

    def _refuse(self, found: Meanings, names: Sequence[str]) -> None:
        if found.problems:
            raise DataError(
                f"{self.path}: {'; '.join(found.problems)}",
                f"The columns are: {', '.join(names)}. See docs/reference/data-formats.md.",
            )


@attrs.frozen(eq=False)
class _Row:
    """One row of a table, from which `record` makes a record.

    Attributes:
        source: The source that the row belongs to.
        rows: The table.
        columns: The name of the column that each key is read from.
        root: The folder that paths in cells must stay in.
        number: The number of the row.
    """

    source: ColumnSource
    rows: Rows
    columns: dict[str, str]
    root: Root
    number: int

    def record(self, id_: str, values: dict[str, Any], problems: Problems) -> Record | None:
        """Make the record; None if the row has no target. Every fault is added to `problems`."""
        where = self.source.where(self.number)
        prompt = (values.get("prompt") or self.source.settings.prompt or "").strip()
        if (prompt or self.source.captions.needed) and (problem := text_problem(prompt)) is not None:
            problems.add(where, f"{problem}; write one, or set data.options.prompt for rows that have none")
        for key in ("id", "group"):
            if values.get(key) and (problem := text_problem(values[key], f"its {key}")) is not None:
                problems.add(where, problem)
                return None
        if not values["target"]:
            problems.add(where, "there is no target")
            return None
        lists = [key for key in _LISTS if key in values]
        numbered = sorted((key for key in values if _NUMBERED.fullmatch(key)), key=_number)
        loss_maps = [self._picture(key, values[key], problems) for key in ("weight", "mask") if values.get(key)]
        return Record(
            id=id_,
            origin=where,
            prompt=prompt,
            target=self._picture("target", values["target"], problems),
            references=tuple(
                self._picture(key, one, problems, place if isinstance(values[key], list) else None)
                for key in (*lists, *numbered)
                for place, one in enumerate(values[key] if isinstance(values[key], list) else [values[key]])
                if one
            ),
            loss_map=loss_maps[0] if loss_maps else None,
            group=values.get("group") or "",
        )

    def _picture(self, key: str, value: str | bool, problems: Problems, place: int | None = None) -> Picture:
        origin = f"{self.source.where(self.number)}, {self.columns[key]}"
        origin += "" if place is None else f" {place + 1}"
        if not isinstance(value, str):
            return Picture(origin, _Cell(self.rows, self.root, self.number, self.columns[key], place, origin))
        path = self.root.folder / value
        picture = Picture(f"{origin} ({value})", path)
        if (problem := self.root.problem(path)) is not None:
            problems.add(origin, problem, picture, detail=repr(value))
        return picture


@attrs.frozen(eq=False)
class _Cell:
    """Reads the bytes of one picture from its cell when it is called.

    Attributes:
        rows: The table.
        root: The folder that a path in the cell must stay in.
        row: The number of the row.
        column: The name of the column.
        place: Which item of the cell is meant, counted from 0; None if the cell holds no list.
        origin: The name that messages give to the picture.
    """

    rows: Rows
    root: Root
    row: int
    column: str
    place: int | None
    origin: str

    def __call__(self) -> bytes:
        value = self.rows.cell(self.row, self.column)
        if self.place is not None:
            value = value[self.place]
        if isinstance(value, dict):  # what Hugging Face's Image feature stores
            if value.get("bytes") is None and value.get("path"):
                return self._file(value["path"])
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise DataError(f"{self.origin}: holds no picture", "Fill the cell, or leave the row out.")
        return value

    def _file(self, name: str) -> bytes:
        path = self.root.folder / name
        if (problem := self.root.problem(path)) is not None:
            raise DataError(
                f"{self.origin}: {name!r}: {problem}", "Store the pictures themselves, or correct the path."
            )
        return path.read_bytes()


def _listed(column: Any, key: str) -> list[Any]:
    """Read what each row of a column holds, apart from the bytes of pictures.

    Args:
        column: The column, a `pyarrow.ChunkedArray`.
        key: What the column is used for, such as "prompt" or "target".

    Returns:
        One item per row. For a text or a path: the string. For a picture that is stored in the table: True. For a list
        of pictures: a list of strings or of True. For an empty cell: None.

    Raises:
        DataError: The type of the column does not fit the key.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):  # nobody filled it
        return [None] * len(column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(column.to_pylist())
    if key in _TEXTS:
        if key == "id" and pa.types.is_integer(kind):
            return [None if value is None else str(value) for value in column.to_pylist()]
        raise DataError(f"column for {key!r} holds {kind}, expected text", "Name another: data.options.columns.")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [True if there else None for there in column.is_valid().to_pylist()]
    if pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}:
        return [True if there else None for there in column.is_valid().to_pylist()]
    if key in _LISTS and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if pa.types.is_string(kind.value_type):
            return [values or [] for values in column.to_pylist()]
        return [[True] * (length or 0) for length in pc.list_value_length(column).to_pylist()]
    raise DataError(
        f"column for {key!r} holds {kind}, expected pictures: bytes, paths, or a struct of bytes and path",
        "Name another: data.options.columns.",
    )


def _number(key: str) -> int:
    """The number at the end of a key: 2 for "reference2", 0 for "reference"."""
    return int(re.sub(r"\D", "", key) or 0)
