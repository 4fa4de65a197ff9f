"""Declares the sources of this package. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl

_FOLDER = "qframe.data.options:FolderOptions"
_TABLE = "qframe.data.options:TableOptions"


@hookimpl
def qframe_components() -> list[Component]:
    return [
        Component(
            "source",
            "folder",
            "qframe.data.folder:FolderSource",
            options=_FOLDER,
            summary="pictures in a folder, captions and references beside them",
        ),
        Component(
            "source",
            "jsonl",
            "qframe.data.tables:JsonlSource",
            options=_TABLE,
            summary="a JSON object per line: target, prompt, references, weight",
        ),
        Component(
            "source",
            "csv",
            "qframe.data.tables:CsvSource",
            options=_TABLE,
            summary="a table with a header: target, prompt, reference, weight",
        ),
        Component(
            "source",
            "parquet",
            "qframe.data.parquet:ParquetSource",
            options="qframe.data.options:ColumnOptions",
            summary="Parquet files with pictures as bytes or paths (extra: parquet)",
        ),
        Component(
            "source",
            "datasets",
            "qframe.data.hub:DatasetsSource",
            options="qframe.data.options:DatasetsOptions",
            summary="a data set of Hugging Face's library, on disk or from the hub (extra: datasets)",
        ),
    ]
