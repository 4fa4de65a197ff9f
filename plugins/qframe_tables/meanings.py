"""Decides what each column of a table, or each key of a JSON object, is for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

from qframe.data.names import COLUMNS, column_meaning, known_columns
from qframe.errors import nearest

PARTS = ("target", "prompt", "weight", "id", "group")
"""The parts of a record that one column holds."""
_OWN_REFERENCES = re.compile(r"(?:reference|control)(?P<number>[1-9]\d{0,3})?|references")
_SHOWN = 60


@attrs.frozen
class Meanings:
    """What the columns of a table are for.

    Attributes:
        parts: By part of a record ("target", "prompt", "weight", "id", "group"), its column.
        references: The columns of the references, in the order of the references.
        problems: Why the columns cannot be used, a sentence each; empty if they can.
    """

    parts: Mapping[str, str]
    references: tuple[str, ...]
    problems: tuple[str, ...] = ()


def find_meanings(
    names: Sequence[str], given: Mapping[str, str] | None, *, strict: bool, usual: bool = True, noun: str = "column"
) -> Meanings:
    """Decide what the columns of these names are for.

    Args:
        names: The names of all columns.
        given: What the user says (`data.options.columns`): by part of a record, the column. It holds before any name.
        strict: Whether a column of unknown meaning is a problem.
        usual: Whether names are looked at; False only checks what the user says.
        noun: What messages call a column.
    """
    given = given or {}
    problems = _wrong(given, names)
    if not usual:
        return Meanings({}, (), tuple(problems))
    taken = {column for part, column in given.items() if part in (*PARTS, "mask")}
    numbered = {column: _number(part) for part, column in given.items() if _OWN_REFERENCES.fullmatch(part)}
    parts = {("weight" if part == "mask" else part): column for part, column in given.items() if column in taken}
    candidates: dict[str, list[str]] = {}
    references: list[tuple[int, str]] = [(number, column) for column, number in numbered.items()]
    unknown = []
    for name in names:
        if name in taken or name in numbered:
            continue
        meaning = column_meaning(name)
        if meaning is None:
            unknown.append(name)
        elif meaning.part == "references":
            references += [] if numbered else [(meaning.number or 0, name)]
        elif meaning.part not in parts:
            candidates.setdefault(meaning.part, []).append(name)
    for part, own in candidates.items():
        parts[part] = own[0]
        if len(own) > 1:
            problems.append(f"has both {_listed(own)}, which mean the same; say which: data.options.columns.{part}")
    references.sort(key=lambda one: one[0])
    if twice := _twice(references):
        problems.append(f"has both {_listed(twice)}, which mean the same; say which: data.options.columns.references")
    if unknown and strict:
        problems.append(_unknown(unknown, noun))
    return Meanings(parts, tuple(name for _, name in references), tuple(problems))


def _wrong(given: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """What is wrong with the columns that the user names."""
    wrong = [part for part in given if part not in (*PARTS, "mask") and not _OWN_REFERENCES.fullmatch(part)]
    missing = [column for column in given.values() if column not in names]
    problems = []
    if wrong:
        known = ", ".join((*PARTS, "references"))
        problems.append(f"data.options.columns: unknown key {_listed(wrong)}; known: {known}")
    if missing:
        problems.append(
            f"there is no column {_listed(missing)}, which data.options.columns names; "
            f"the columns are: {', '.join(map(_short, names))}"
        )
    return problems


def _unknown(names: Sequence[str], noun: str) -> str:
    """Word the problem of unknown names: each with the known name that is most similar to it."""
    known = [*COLUMNS, "reference", *known_columns()]
    shown = []
    for name in names:
        close = nearest(name, known, 1)
        shown.append(f"{_short(name)!r}{f' (did you mean {close[0]!r}?)' if close else ''}")
    several = "s" if len(names) > 1 else ""
    return (
        f"unknown {noun}{several} {', '.join(shown)}; known: {', '.join(COLUMNS)}, and the usual names of other "
        "trainers. data.options.other_columns = 'ignore' leaves others out"
    )


def _twice(references: Sequence[tuple[int, str]]) -> list[str]:
    """Names of references of which nobody can say which comes first. `reference` and `control` may stand together."""
    places: dict[int, list[str]] = {}
    for number, name in references:
        places.setdefault(number, []).append(name)
    together = {"reference", "control"}
    return [
        name
        for own in places.values()
        if len(own) > 1 and {re.sub(r"\d+$", "", one) for one in own} != together
        for name in own
    ]


def _number(part: str) -> int:
    found = _OWN_REFERENCES.fullmatch(part)
    return int(found["number"]) if found is not None and found["number"] else 0


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(_short(name)) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
