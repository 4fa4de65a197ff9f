"""The values that the parts of the program write, and their table. Imports nothing but the standard library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Better = Literal["lower", "higher", "equal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One result.

    Attributes:
        part: The name of the part that measured it.
        what: What was measured.
        measured: The result; None if there is none.
        unit: The unit of the result.
        predicted: What was predicted before it was ever run, in the same unit; None if nothing was.
        reach: What it has to reach; None if it need not reach anything.
        better: Whether a result has to be at most, at least or exactly what is to be reached.
        note: What else a reader must know, such as the settings, or the reason why there is no result.
        failed: Whether something went wrong that may not go wrong, such as an error, or a wrong result.
    """

    part: str
    what: str
    measured: float | None = None
    unit: str = ""
    predicted: float | None = None
    reach: float | None = None
    better: Better = "lower"
    note: str = ""
    failed: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the result is what it has to be; None if that cannot be said."""
        if self.reach is None or self.measured is None:
            return None
        return {
            "lower": self.measured <= self.reach,
            "higher": self.measured >= self.reach,
            "equal": self.measured == self.reach,
        }[self.better]


class Rows:
    """A file of rows, one line each, to which a part adds every row as soon as it is known."""

    def __init__(self, file: Path, part: str, *, predicting: bool = True) -> None:
        """Remember where rows go.

        Args:
            file: The file.
            part: The name of the part that will add rows.
            predicting: Whether rows keep what is predicted and what is to be reached; in a rehearsal neither applies.
        """
        self.file = file
        self.part = part
        self.predicting = predicting

    def add(
        self,
        what: str,
        measured: float | None = None,
        unit: str = "",
        *,
        predicted: float | None = None,
        reach: float | None = None,
        better: Better = "lower",
        note: str = "",
        failed: bool = False,
    ) -> None:
        """Add a row; the arguments are the attributes of `Row`."""
        row = Row(
            part=self.part,
            what=what,
            measured=measured,
            unit=unit,
            predicted=predicted if self.predicting else None,
            reach=reach if self.predicting else None,
            better=better,
            note=note,
            failed=failed,
        )
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dataclasses.asdict(row)) + "\n")

    def read(self) -> list[Row]:
        """Return the rows that the file holds; a last line that a kill cut short is left out."""
        found = []
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            try:
                found.append(Row(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| part | what | predicted | measured | to reach | | note |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        verdict = "FAILED" if row.failed else {None: "", True: "reached", False: "not reached"}[row.reached]
        limit = "" if row.reach is None else f"{_SIGNS[row.better]}{_number(row.reach, row.unit)}"
        cells = [row.part, row.what, _number(row.predicted, row.unit), _number(row.measured, row.unit), limit, verdict]
        lines.append("| " + " | ".join([*cells, row.note.replace("|", "/").replace("\n", " ")]) + " |")
    return "\n".join(lines)


_SIGNS = {"lower": "at most ", "higher": "at least ", "equal": ""}


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g}{f' {unit}' if unit else ''}"
