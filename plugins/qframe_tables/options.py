"""The options (`data.options`) of the data sources that read tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from qframe.data.options import SourceOptions


@attrs.frozen(kw_only=True)
class ColumnOptions(SourceOptions):
    """The options of the data source "parquet".

    Attributes:
        columns: For each part of a record ("target", "prompt", ...) the name of the column that it is read from; None,
            or a part that is left out, means the column of the same name, or of a usual name of other trainers.
    """

    columns: Mapping[str, str] | None = attrs.field(
        default=None, metadata={"help": "which column is what, e.g. { target = 'image', prompt = 'text' }"}
    )


@attrs.frozen(kw_only=True)
class TableOptions(ColumnOptions):
    """The options of the data sources "jsonl" and "csv".

    Attributes:
        other_columns: What to do with columns of unknown meaning; the other sources ignore them.
        folder: The folder that paths in the table are relative to; None means the folder of the table.
    """

    other_columns: Literal["refuse", "ignore"] = attrs.field(
        default="refuse", metadata={"help": "what to do with columns of unknown meaning: refuse or ignore"}
    )
    folder: str | None = attrs.field(
        default=None, metadata={"help": "folder that paths in the table are relative to; by default the table's own"}
    )


@attrs.frozen(kw_only=True)
class DatasetsOptions(ColumnOptions):
    """The options of the data source "datasets".

    Attributes:
        repo: The id of a data set on the Hugging Face hub; None means that `data.path` names a folder.
        split: Which split of the data set is read.
        name: Which configuration is read, for a data set that has several; None means the default one.
    """

    repo: str | None = attrs.field(default=None, metadata={"help": "hub id, in place of data.path"})
    split: str = attrs.field(default="train", metadata={"help": "which part of the data set"})
    name: str | None = attrs.field(default=None, metadata={"help": "configuration of a data set that has several"})
