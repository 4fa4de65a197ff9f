"""Registers the data sources that read tables with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl

_TABLE = "qframe_tables.options:TableOptions"


@hookimpl
def qframe_components() -> list[Component]:
    """Return the data sources "jsonl", "csv", "parquet" and "datasets"."""
    return [
        Component(
            "source",
            "jsonl",
            "qframe_tables.tables:JsonlSource",
            options=_TABLE,
            suffixes=(".jsonl", ".json"),
            summary="a JSON object per line, or a list of them: target, prompt, references, weight",
        ),
        Component(
            "source",
            "csv",
            "qframe_tables.tables:CsvSource",
            options=_TABLE,
            suffixes=(".csv",),
            summary="a table with a header: target, prompt, reference, weight",
        ),
        Component(
            "source",
            "parquet",
            "qframe_tables.parquet:ParquetSource",
            options="qframe_tables.options:ColumnOptions",
            suffixes=(".parquet",),
            summary="Parquet files with pictures as bytes or paths (extra: parquet)",
        ),
        Component(
            "source",
            "datasets",
            "qframe_tables.hub:DatasetsSource",
            options="qframe_tables.options:DatasetsOptions",
            summary="a data set of Hugging Face's library, on disk or from the hub (extra: datasets)",
        ),
    ]
