"""The contract of a data source: it lists the records of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from qframe.interfaces.examples import Record
from qframe.pictures.picture import Picture


@attrs.frozen(eq=False)
class Problem:
    """What keeps a part of a data set from being used. origin: file or row. picture: the one it is about, if any."""

    origin: str
    message: str
    picture: Picture | None = None


@attrs.frozen(eq=False, kw_only=True)
class Survey:
    """A data set looked at as a whole.

    records: also those that `problems` are about, as far as they can be named; their ids are in `unusable`.
    """

    records: Sequence[Record]
    validation: Sequence[Record] = ()
    problems: Sequence[Problem] = ()
    unusable: frozenset[str] = frozenset()


class RecordSource(ABC):
    """A data set: records, cheap to list, nothing opened. Registered as kind "source".

    Built with its options (None if it declares none) and the path a user gave, if any.
    """

    def __init__(self, options: Any, path: Path | None) -> None:
        self.options = options
        self.path = path

    @abstractmethod
    def records(self) -> Sequence[Record]:
        """All training records, always in the same order."""

    def validation(self) -> Sequence[Record]:
        """Records kept from training, sampled before and after it. By default none."""
        return ()

    def survey(self) -> Survey:
        """Everything there is and everything that is wrong with it, as far as listing tells: for `qframe data check`.

        By default what `records` and `validation` give.
        """
        return Survey(records=self.records(), validation=self.validation())

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """Whether a sampled picture does what the record asks; None where only a person can tell.

        Reports sum over `record.group`.
        """
        return None
