"""Settings of data sources that read files. Imports no torch."""

from __future__ import annotations

import attrs
from attrs.validators import ge


@attrs.frozen(kw_only=True)
class SourceOptions:
    """The options that every data source of files has. A source with further options defines a subclass.

    Attributes:
        prompt: The caption of pictures that have none of their own; None makes a missing caption a problem.
        validation: The number of records that are kept from training, and sampled before and after it.
        allow_outside: Whether files may lie, or links may lead, outside of the data set's folder.
    """

    prompt: str | None = attrs.field(default=None, metadata={"help": "caption of pictures that have none of their own"})
    validation: int = attrs.field(
        default=0, validator=ge(0), metadata={"help": "records kept from training, sampled before and after it"}
    )
    allow_outside: bool = attrs.field(
        default=False, metadata={"help": "true: files may lie, or links lead, outside of the data set's folder"}
    )


@attrs.frozen(kw_only=True)
class FolderOptions(SourceOptions):
    """The options of the data source "folder"; they are those of `SourceOptions`."""
