"""Joins several data sets into one, each with a weight that says how much of an epoch it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property

import attrs
from PIL import Image

from qframe.data.repeats import Repeated, copied, weighted_counts
from qframe.errors import DataError
from qframe.interfaces import LazyRecords, Problem, Record, RecordSource, Survey
from qframe.pictures.picture import Picture


@attrs.frozen(eq=False)
class Member:
    """A data set of a mixture.

    Attributes:
        name: Its name, which no other data set of the mixture has, and which holds no "/".
        source: The data source.
        weight: How much of an epoch it is, relative to the weights of the others; None leaves it at its own size.
    """

    name: str
    source: RecordSource
    weight: float | None


class MixtureSource(RecordSource):
    """A data source that joins several others. The id of a record begins with the name of its data set."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Remember the data sets, without reading them; either all have a weight, or none has."""
        super().__init__(None, None)
        self._members = members
        self._renamed: weakref.WeakKeyDictionary[Picture, Picture] = weakref.WeakKeyDictionary()

    def records(self) -> Sequence[Record]:
        """Return the records of all data sets, repeated so that the data sets' parts of an epoch are as their weights.

        Raises:
            DataError: A data set cannot be used, or has no records.
        """
        joined = _Joined(self, self._lists)
        counts = self._counts
        if counts is None:
            return joined
        return Repeated(joined, [count for own in counts for count in own], copied)

    def validation(self) -> Sequence[Record]:
        """Return the records that the data sets keep for validation, each once."""
        return _Joined(self, [member.source.validation() for member in self._members])

    def notes(self) -> Sequence[str]:
        """Return what the data sets tell of themselves, and how much of an epoch each is."""
        notes = [f"{member.name}: {note}" for member in self._members for note in member.source.notes()]
        sizes = [len(records) for records in self._lists]
        visits = sizes if self._counts is None else [sum(own) for own in self._counts]
        for member, size, own in zip(self._members, sizes, visits, strict=True):
            notes.append(f"{member.name}: {size} records, visited {own} times, {own / sum(visits):.0%} of an epoch")
        return notes

    def survey(self) -> Survey:
        """Return the records and the problems of all data sets; what is repeated because of weights is listed once."""
        surveys = [(member.name, member.source.survey()) for member in self._members]
        return Survey(
            records=_Joined(self, [survey.records for _, survey in surveys]),
            validation=_Joined(self, [survey.validation for _, survey in surveys]),
            problems=[
                Problem(
                    f"{name}/{problem.origin}",
                    problem.message,
                    None if problem.picture is None else self._rename(problem.picture, name),
                    problem.detail,
                )
                for name, survey in surveys
                for problem in survey.problems
            ],
            unusable=frozenset(f"{name}/{id_}" for name, survey in surveys for id_ in survey.unusable),
        )

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """Ask the data set of the record whether a sampled picture does what the record asks for."""
        name, _, id_ = record.id.partition("/")
        member = next((member for member in self._members if member.name == name), None)
        return None if member is None else member.source.success(attrs.evolve(record, id=id_, original=""), picture)

    def named(self, record: Record, place: int) -> Record:
        """Return a record of the data set at a place under the names that it has in the mixture."""
        name = self._members[place].name
        return attrs.evolve(
            record,
            id=f"{name}/{record.id}",
            origin=f"{name}/{record.origin}",
            original=f"{name}/{record.original}" if record.original else "",
            target=self._rename(record.target, name),
            references=tuple(self._rename(reference, name) for reference in record.references),
            loss_map=None if record.loss_map is None else self._rename(record.loss_map, name),
        )

    @cached_property
    def _lists(self) -> list[Sequence[Record]]:
        lists = [member.source.records() for member in self._members]
        empty = [member.name for member, records in zip(self._members, lists, strict=True) if not records]
        if empty:
            raise DataError(f"data.sets: {', '.join(empty)} has no records", "Leave it out.")
        return lists

    @cached_property
    def _counts(self) -> list[list[int]] | None:
        weights = [member.weight for member in self._members if member.weight is not None]
        if not weights:
            return None
        return weighted_counts([[record.id for record in records] for records in self._lists], weights)

    def _rename(self, picture: Picture, name: str) -> Picture:
        """A picture under its name in the mixture: always the same object, so that its digest is computed once."""
        if picture not in self._renamed:
            self._renamed[picture] = Picture(f"{name}/{picture.origin}", picture.source)
        return self._renamed[picture]


class _Joined(LazyRecords):
    """The records of several lists, one list after another; each is made when it is accessed."""

    def __init__(self, mixture: MixtureSource, lists: Sequence[Sequence[Record]]) -> None:
        self._mixture, self._lists = mixture, lists

    def __len__(self) -> int:
        return sum(map(len, self._lists))

    def record(self, index: int) -> Record:
        """Make a record of the list that the index lies in."""
        for place, records in enumerate(self._lists):
            if index < len(records):
                return self._mixture.named(records[index], place)
            index -= len(records)
        raise IndexError("a list became shorter")

    def __iter__(self) -> Iterator[Record]:
        for place, records in enumerate(self._lists):
            for record in records:
                yield self._mixture.named(record, place)
