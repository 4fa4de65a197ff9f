"""Settings of the sources of this package. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs.validators import ge


@attrs.frozen(kw_only=True)
class SourceOptions:
    """Settings that every source of files has."""

    prompt: str | None = attrs.field(default=None, metadata={"help": "caption of pictures that have none of their own"})
    validation: int = attrs.field(
        default=0, validator=ge(0), metadata={"help": "records kept from training, sampled before and after it"}
    )
    allow_outside: bool = attrs.field(
        default=False, metadata={"help": "true: files may lie, or links lead, outside of the data set's folder"}
    )


@attrs.frozen(kw_only=True)
class FolderOptions(SourceOptions):
    """Settings of the source "folder"."""


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
