"""The contract of a data source: it lists the records of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import attrs
from PIL import Image

from qframe.interfaces.examples import Record
from qframe.pictures.picture import Picture


@attrs.frozen(eq=False)
class Problem:
    """A problem in a data set: a file, row or picture that cannot be used.

    Attributes:
        origin: The file or row.
        message: What is wrong, for people. Problems with the same cause have the same message.
        picture: The picture that is wrong, if it is one.
        detail: What distinguishes the problem from others with the same cause, such as the path in a cell of a table.
    """

    origin: str
    message: str
    picture: Picture | None = None
    detail: str = ""


@attrs.frozen(eq=False, kw_only=True)
class Survey:
    """The records of a data set, and the problems that were found when they were listed.

    Attributes:
        records: The records to train on, also those with problems if they can be distinguished.
        validation: The records that are kept from training.
        problems: The problems that were found.
        unusable: The ids of records that have problems.
    """

    records: Sequence[Record]
    validation: Sequence[Record] = ()
    problems: Sequence[Problem] = ()
    unusable: frozenset[str] = frozenset()


class LazyRecords(Sequence[Record], ABC):
    """Records that are made when they are accessed, so that a long list costs no memory.

    A subclass defines `__len__` and `record`.
    """

    @abstractmethod
    def record(self, index: int) -> Record:
        """Make the record with this number, from 0 to the number of records less 1."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self.record(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records, and number {index} was asked for")
        return self.record(index % len(self))


class RecordSource(ABC):
    """A data source that lists the records of a data set without opening a picture.

    A plugin registers a subclass as a component of kind "source".

    Attributes:
        options: An instance of the class that the plugin declares for the source's options, or None.
        path: The path that the user gave (`data.path`), or None.
    """

    def __init__(self, options: Any, path: Path | None) -> None:
        self.options = options
        self.path = path

    @abstractmethod
    def records(self) -> Sequence[Record]:
        """Return all records to train on, in the same order in every call.

        Raises:
            DataError: The data set cannot be used.
        """

    def validation(self) -> Sequence[Record]:
        """Return the records that are kept from training and sampled before and after it. The default has none."""
        return ()

    def notes(self) -> Sequence[str]:
        """Return what the user should know of how the data set was understood, a sentence each. The default has none.

        Commands print them before a run. Reading is allowed, opening pictures is not.
        """
        return ()

    def survey(self) -> Survey:
        """Return all records and all problems that are found by listing, for `qframe data check`.

        The default returns what `records` and `validation` return, with no problems.
        """
        return Survey(records=self.records(), validation=self.validation())

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """Judge whether a sampled picture does what a record asks for. Reports count successes by `record.group`.

        The default returns None, which means that only a person can judge.
        """
        return None
