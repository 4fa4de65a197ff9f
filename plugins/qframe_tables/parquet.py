"""Reads training records from Parquet files whose pictures are bytes, paths, or structs of both."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qframe.errors import ConfigError, DataError
from qframe.plugins.distribution import install_hint
from qframe_tables.columns import ColumnSource, Rows

_GROUPS_KEPT = 4
"""How many row groups of single columns stay in memory after a picture was read from them."""


class ParquetSource(ColumnSource):
    """A data source that reads one `.parquet` file, or all `.parquet` files of a folder in the order of their names."""

    name = "parquet"

    def open_rows(self) -> Rows:
        """Read the metadata of the file, or of every `.parquet` file in the folder.

        Raises:
            ConfigError: pyarrow is not installed.
            DataError: The folder has no `.parquet` file, or a file is damaged or has other columns than the first.
        """
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not files:
            raise DataError(f"{self.path}: holds no .parquet file", "Give the folder that they lie in, or one of them.")
        return ParquetRows(files)

    @property
    def root(self) -> Path:
        """The folder of the Parquet files, which paths in cells are relative to."""
        return self.path if self.path.is_dir() else self.path.parent


class ParquetRows:
    """The rows of several Parquet files with the same columns, read one row group at a time.

    Implements the protocol `Rows`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the metadata of every file; rows are counted through the files in the given order.

        Raises:
            ConfigError: pyarrow is not installed.
            DataError: A file is damaged, or its columns are not those of the first file.
        """
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(
                f"source 'parquet' needs pyarrow ({error})", f"Install it: {install_hint('parquet')}"
            ) from error
        self._parquet = pyarrow.parquet
        self._damage: type[Exception] = pyarrow.ArrowException
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        self._names: tuple[str, ...] = ()
        count = 0
        for file in files:
            with self._open(file) as opened:
                names = tuple(opened.schema_arrow.names)
                if self._names and names != self._names:
                    raise DataError(
                        f"{file}: its columns are {', '.join(names)}; those of {files[0].name}: "
                        f"{', '.join(self._names)}",
                        "Write all files with the same columns.",
                    )
                self._names = names
                for group in range(opened.num_row_groups):
                    self._groups.append((file, group))
                    self._starts.append(count)
                    count += opened.metadata.row_group(group).num_rows
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._read)

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns, which are the same in every file."""
        return self._names

    def tables(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield all rows of these columns in order; each `pyarrow.Table` is one row group of a file."""
        for place in range(len(self._groups)):
            yield self._read(place, tuple(columns))

    def cell(self, row: int, column: str) -> Any:
        """Read one cell, and return its value as a Python object; `row` is counted from 0 through all files.

        The column's row group stays in memory for a while, because cells of the same row group are often read next.
        """
        place = bisect_right(self._starts, row) - 1
        return self._group(place, (column,)).column(column)[row - self._starts[place]].as_py()

    def _read(self, place: int, columns: tuple[str, ...]) -> Any:
        file, group = self._groups[place]
        with self._open(file) as opened:
            try:
                return opened.read_row_group(group, columns=list(columns))
            except (OSError, ValueError, self._damage) as error:
                raise _damaged(file, error) from error

    def _open(self, file: Path) -> Any:
        if not file.is_file():  # pyarrow would wait for whoever writes into a pipe
            raise DataError(f"{file}: is not a file", "Each .parquet of a folder is read as a part of the data set.")
        try:
            return self._parquet.ParquetFile(file)
        except (OSError, ValueError, self._damage) as error:
            raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"{file}: cannot be read as Parquet ({reason})", "Replace the file.")
