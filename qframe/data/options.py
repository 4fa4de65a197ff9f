"""Settings of data sources that read files. Imports no torch."""

from __future__ import annotations

import attrs
from attrs.validators import ge


@attrs.frozen(kw_only=True)
class SourceOptions:
    """Settings that every source of files has; a source with settings of its own extends this class."""

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
