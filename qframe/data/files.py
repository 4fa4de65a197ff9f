"""What the sources of files share: paths that stay where they should, problems that are told together."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from qframe.data.options import SourceOptions
from qframe.errors import DataError, bullet_list
from qframe.interfaces import Problem, Record, RecordSource, Survey
from qframe.pictures.picture import Picture

_SHOWN = 20
_LARGEST_CAPTION = 1_000_000


class Problems:
    """What is wrong with a data set, gathered so that it is all told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.unusable: set[str] = set()

    @contextmanager
    def about(self, record: str) -> Iterator[None]:
        """What is added inside keeps the record of this id from being used."""
        before = len(self.found)
        yield
        if len(self.found) > before:
            self.unusable.add(record)

    def add(self, where: str, what: str, picture: Picture | None = None) -> None:
        self.found.append(Problem(where, what, picture))

    def raise_any(self, name: str, hint: str) -> None:
        """DataError with the first of them and their number, if there are any."""
        count = len(self.found)
        if not count:
            return
        lines = [f"{problem.origin}: {problem.message}" for problem in self.found[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"... and {count - _SHOWN} more")
            hint += " `qframe data check` shows all of them."
        plural = "problem" if count == 1 else "problems"
        raise DataError(f"{name}: {count} {plural}\n{bullet_list(lines)}", hint)


class Root:
    """The folder that a data set's files lie in. remedy: what would let files lie elsewhere."""

    def __init__(self, folder: Path, *, allow_outside: bool, remedy: str = "set data.options.allow_outside") -> None:
        self.folder = folder
        self._remedy = remedy
        self._allow_outside = allow_outside
        self._real = os.path.realpath(folder)
        self._parents: dict[str, bool] = {}

    def problem(self, path: Path) -> str | None:
        """Why this file cannot be used, or None. A path is judged by where it leads, links included."""
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                found = os.stat(path)
                inside = self._inside(os.path.realpath(path))
            else:
                inside = self._parent_inside(os.path.dirname(path))
        except (OSError, ValueError) as error:  # ValueError: a null byte, or no valid Unicode
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            return reason[:1].lower() + reason[1:]
        if not inside and not self._allow_outside:
            return f"leads outside of {self.folder}; move it there, or {self._remedy}"
        return None if stat.S_ISREG(found.st_mode) else "not a file"

    def _parent_inside(self, parent: str) -> bool:
        if parent not in self._parents:
            self._parents[parent] = self._inside(os.path.realpath(parent))
        return self._parents[parent]

    def _inside(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)


class FileSource(RecordSource):
    """A source of records that lie in files: listed once, some of them kept for validation."""

    name: str
    rules: ClassVar[str] = "Fields and paths are explained in docs/reference/data-formats.md."

    def __init__(self, options: SourceOptions | None, path: Path | None) -> None:
        super().__init__(options, path)
        if path is None:
            raise DataError(f"source {self.name!r} reads files, but no path is given", "Give --data PATH.")
        self.path: Path = path
        self.settings = options if options is not None else self.default_options()

    @staticmethod
    @abstractmethod
    def default_options() -> SourceOptions:
        """The settings when the user gives none."""

    @abstractmethod
    def read(self, problems: Problems) -> list[Record]:
        """All records; files and rows that cannot be used go to `problems`. DataError if there is nothing to read."""

    def records(self) -> Sequence[Record]:
        """All records but those kept for validation."""
        return [record for record in self._all if record.id not in self._kept]

    def validation(self) -> Sequence[Record]:
        """As many as the option says; which ones depends on their ids alone, not on order or on a seed."""
        return [record for record in self._all if record.id in self._kept]

    def survey(self) -> Survey:
        """See `RecordSource.survey`."""
        problems = Problems()
        records = self.read(problems)
        return Survey(records=records, problems=problems.found, unusable=frozenset(problems.unusable))

    @cached_property
    def _all(self) -> list[Record]:
        problems = Problems()
        records = self.read(problems)
        problems.raise_any(str(self.path), self.rules)
        return records

    @cached_property
    def _kept(self) -> frozenset[str]:
        count = self.settings.validation
        if count >= len(self._all) and count:
            raise DataError(
                f"{self.path}: data.options.validation keeps {count} of {len(self._all)} records, "
                "which leaves none to train on",
                "Keep fewer.",
            )
        ranked = sorted(self._all, key=lambda record: hashlib.sha256(record.id.encode()).digest())
        return frozenset(record.id for record in ranked[:count])


def read_text(path: Path, *, limit: int = _LARGEST_CAPTION) -> str:
    """A UTF-8 file, with or without a byte-order mark. ValueError says what is wrong."""
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"larger than {limit} bytes")
        return decode(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def decode(data: bytes) -> str:
    """UTF-8 with or without a byte-order mark. ValueError names the byte that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}); save it as UTF-8") from error


def text_problem(text: str) -> str | None:
    """Why a prompt cannot be used, or None."""
    if not text.strip():
        return "the prompt is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the prompt holds half a character (at {error.start})"
    return None
