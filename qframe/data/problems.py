"""The list of everything that is wrong with a data set, in which problems with one cause are one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs

from qframe.errors import DataError, bullet_list
from qframe.interfaces import Problem
from qframe.pictures.picture import Picture

_SHOWN = 20
"""The most causes that an error message shows."""
_NAMED = 10
"""The most places that a line names for one cause."""


class Problems:
    """A list of everything that is wrong with a data set, so that one error can report all of it.

    Attributes:
        found: The problems, in the order in which they were added.
        unusable: The ids of the records that cannot be used because of a problem.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.unusable: set[str] = set()

    @contextmanager
    def about(self, record: str) -> Iterator[None]:
        """A context for reading one record: if a problem is added inside, the record's id is put into `unusable`."""
        before = len(self.found)
        yield
        if len(self.found) > before:
            self.unusable.add(record)

    def add(self, where: str, what: str, picture: Picture | None = None, detail: str = "") -> None:
        """Add a problem to the list.

        Args:
            where: The file or row that has the problem.
            what: A text that says what is wrong. Problems with the same cause have the same text.
            picture: The picture that has the problem; None if the problem is not in a picture.
            detail: What distinguishes this problem from others with the same cause, such as the path in a cell.
        """
        self.found.append(Problem(printable(where), printable(what), picture, printable(detail)))

    def raise_any(self, name: str, hint: str) -> None:
        """Raise a DataError if the list holds a problem; otherwise do nothing.

        The message names the data set, gives the number of problems, and has a line for each cause, at most 20.

        Args:
            name: The name of the data set, for the message.
            hint: The last sentence of the message, which says what the user can do.
        """
        count = len(self.found)
        if not count:
            return
        causes = by_cause(self.found)
        lines = [cause.line() for cause in causes[:_SHOWN]]
        if len(causes) > _SHOWN:
            lines.append(f"... and {sum(len(cause.places) for cause in causes[_SHOWN:])} more")
        if len(causes) > _SHOWN or any(len(cause.places) > _NAMED for cause in causes):
            hint += " `qframe data check` shows all of them."
        plural = "problem" if count == 1 else "problems"
        raise DataError(f"{name}: {count} {plural}\n{bullet_list(lines)}", hint)


@attrs.frozen
class Cause:
    """All problems that have the same cause.

    Attributes:
        message: What is wrong.
        places: For each problem, its place and its detail, in the order in which the problems were found.
    """

    message: str
    places: Sequence[tuple[str, str]]

    def line(self) -> str:
        """Word the cause in one line, which names at most 10 of the places."""
        if len(self.places) == 1:
            origin, detail = self.places[0]
            return f"{origin}: {self.message}{f' ({detail})' if detail else ''}"
        return f"{len(self.places)} times: {self.message}: {self.named(_NAMED)}"

    def named(self, most: int) -> str:
        """Name the places, at most so many, each with its detail."""
        shown = [f"{origin} ({detail})" if detail else origin for origin, detail in self.places[:most]]
        rest = len(self.places) - len(shown)
        return ", ".join(shown) + (f" and {rest} more" if rest else "")


def by_cause(problems: Iterable[Problem]) -> list[Cause]:
    """Put problems with the same message together. The causes are in the order in which they were first met."""
    found: dict[str, list[tuple[str, str]]] = {}
    for problem in problems:
        found.setdefault(problem.message, []).append((problem.origin, problem.detail))
    return [Cause(message, places) for message, places in found.items()]


def printable(text: str) -> str:
    """Return a text with everything escaped that a terminal or a file in UTF-8 cannot show, such as half characters."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in safe)
