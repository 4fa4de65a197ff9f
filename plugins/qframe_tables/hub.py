"""Reads training records with Hugging Face's library `datasets`, from a folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qframe.errors import ConfigError, DataError
from qframe.plugins.distribution import install_hint
from qframe_tables.columns import ColumnSource, Rows
from qframe_tables.options import DatasetsOptions

_ROWS_AT_ONCE = 256
"""How many rows are in memory while the records are listed."""


class DatasetsSource(ColumnSource):
    """Reads a data set that `datasets.load_from_disk` or `datasets.load_dataset` opens.

    Pictures are taken out of the data set's Arrow tables as bytes, so the library `datasets` never decodes them.
    """

    name = "datasets"
    settings: DatasetsOptions

    def __init__(self, options: DatasetsOptions | None, path: Path | None) -> None:
        repo = None if options is None else options.repo
        if path is not None and repo is not None:
            raise ConfigError("data.path and data.options.repo are both set", "Give a folder, or a hub id.")
        super().__init__(options, path if repo is None else Path(repo))
        self._repo = repo

    @staticmethod
    def default_options() -> DatasetsOptions:
        return DatasetsOptions()

    @property
    def root(self) -> Path:
        """The folder of the data set, which paths in cells are relative to."""
        return self.path

    def open_rows(self) -> Rows:
        """Open the data set that `data.path` or `data.options.repo` names, and choose its split `data.options.split`.

        Raises:
            ConfigError: The library `datasets` is not installed.
            DataError: The data set cannot be opened, or has no such split.
        """
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(
                f"source 'datasets' needs the library of that name ({error})",
                f"Install it: {install_hint('datasets')}",
            ) from error
        settings = self.settings
        saved = any((self.path / file).is_file() for file in ("state.json", "dataset_dict.json"))
        try:
            if self._repo is None and saved:
                found = datasets.load_from_disk(str(self.path))
            else:
                found = datasets.load_dataset(str(self.path), settings.name, split=settings.split)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"{self.path}: cannot be opened as a data set ({str(error).splitlines()[0]})",
                "Give what save_to_disk wrote, a folder of Parquet or pictures, or a hub id in data.options.repo.",
            ) from error
        if isinstance(found, datasets.DatasetDict):
            if settings.split not in found:
                raise DataError(
                    f"{self.path}: there is no split {settings.split!r}",
                    f"Set data.options.split to one of: {', '.join(map(str, found))}.",
                )
            found = found[settings.split]
        return DatasetRows(found)


class DatasetRows:
    """The rows of a `datasets.Dataset`, read from its Arrow tables. Implements the protocol `Rows`."""

    def __init__(self, found: Any) -> None:
        self._data = found.with_format("arrow")
        self._columns: dict[str, Any] = {}

    @property
    def names(self) -> Sequence[str]:
        """The names of the data set's columns."""
        return tuple(self._data.column_names)

    def tables(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield all rows of these columns in order, as `pyarrow.Table`s of at most 256 rows."""
        yield from self._data.select_columns(list(columns)).iter(batch_size=_ROWS_AT_ONCE)

    def cell(self, row: int, column: str) -> Any:
        """Read one cell, and return its value as a Python object; `row` is counted from 0."""
        if column not in self._columns:
            self._columns[column] = self._data.select_columns([column])
        return self._columns[column][row].column(column)[0].as_py()
