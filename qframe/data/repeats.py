"""Repeats records, so that an epoch visits some records more often than others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import attrs

from qframe.errors import DataError
from qframe.interfaces import LazyRecords, Record

MOST_RECORDS = 10_000_000
"""The most records that a data set may have, repeats included."""


class Repeated(LazyRecords):
    """Records of which some are listed several times, each time under an id of its own. They are made when accessed.

    All records come first once, then those that are repeated a second time, and so on. So the first records are all
    different.
    """

    def __init__(self, records: Sequence[Record], counts: Sequence[int], make: Callable[[Record, int], Record]) -> None:
        """Remember the records.

        Args:
            records: The records.
            counts: For each record, how many times it is listed.
            make: Called with a record and the number of the repeat, counted from 0; returns the record as it is listed.

        Raises:
            DataError: There would be more than 10,000,000 records.
        """
        if sum(counts) > MOST_RECORDS:
            raise DataError(
                f"repeats and weights give {sum(counts)} records, more than {MOST_RECORDS}", "Lower repeats or weights."
            )
        self._records, self._make = records, make
        self._places = sorted((copy, place) for place, count in enumerate(counts) for copy in range(count))

    def __len__(self) -> int:
        return len(self._places)

    def record(self, index: int) -> Record:
        """Make a record under the id of its repeat."""
        copy, place = self._places[index]
        return self._make(self._records[place], copy)


def repeated(
    records: Sequence[Record], counts: Sequence[int], prompt: Callable[[Record, int], str]
) -> Sequence[Record]:
    """List each record as often as `counts` says.

    Args:
        records: The records.
        counts: For each record, how many times it is listed.
        prompt: Called with a record and the number of the repeat, counted from 0; returns the prompt of the repeat.

    Raises:
        DataError: There would be more than 10,000,000 records, or a repeat would have the id of another record.
    """

    def make(record: Record, copy: int) -> Record:
        return copied(attrs.evolve(record, prompt=prompt(record, copy)), copy)

    found = list(Repeated(records, counts, make))
    own = {record.id for record in records}
    clash = next((record.id for record in found if record.original and record.id in own), None)
    if clash is not None:
        raise DataError(f"record {clash}: a repeat of another record would have this id", "Rename this record.")
    return found


def copied(record: Record, copy: int) -> Record:
    """Return a record as its repeat of this number, counted from 0; a repeat has its own id and names its original."""
    if copy == 0:
        return record
    return attrs.evolve(record, id=f"{record.id}#{copy + 1}", original=record.original or record.id)


def weighted_counts(ids: Sequence[Sequence[str]], weights: Sequence[float]) -> list[list[int]]:
    """Return for each record of several data sets how many times an epoch visits it.

    Then the data sets' parts of an epoch are as their weights, up to whole numbers of records. Every record is visited
    at least once. Where not all records of a data set are visited equally often, their ids decide which are preferred.

    Args:
        ids: For each data set, the ids of its records; no data set is empty.
        weights: For each data set, its weight, above 0.
    """
    rates = [weight / len(own) for own, weight in zip(ids, weights, strict=True)]
    counts = []
    for own, rate in zip(ids, rates, strict=True):
        visits = round(rate / min(rates) * len(own))
        each, more = divmod(visits, len(own))
        ranked = sorted(range(len(own)), key=lambda place: hashlib.sha256(own[place].encode()).digest())
        extra = set(ranked[:more])
        counts.append([each + (place in extra) for place in range(len(own))])
    return counts
