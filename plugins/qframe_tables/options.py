"""Settings of the data sources that read tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qframe.data.options import SourceOptions


@attrs.frozen(kw_only=True)
class TableOptions(SourceOptions):
    """Settings of the sources "jsonl" and "csv"."""


@attrs.frozen(kw_only=True)
class ColumnOptions(SourceOptions):
    """Settings of the source "parquet"."""

    columns: Mapping[str, str] | None = attrs.field(
        default=None, metadata={"help": "which column is what, e.g. { target = 'image', prompt = 'text' }"}
    )


@attrs.frozen(kw_only=True)
class DatasetsOptions(ColumnOptions):
    """Settings of the source "datasets"."""

    repo: str | None = attrs.field(default=None, metadata={"help": "hub id, in place of data.path"})
    split: str = attrs.field(default="train", metadata={"help": "which part of the data set"})
    name: str | None = attrs.field(default=None, metadata={"help": "configuration of a data set that has several"})
