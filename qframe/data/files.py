"""What sources of files share: checks of paths and texts, and a list of everything that is wrong with a data set."""

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
    """Collects what is wrong with a data set, so that one error can report all of it.

    Attributes:
        found: The problems in the order in which they were added.
        unusable: Ids of the records that a problem keeps from being used.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.unusable: set[str] = set()

    @contextmanager
    def about(self, record: str) -> Iterator[None]:
        """A context in which every problem that is added marks the record of this id as unusable."""
        before = len(self.found)
        yield
        if len(self.found) > before:
            self.unusable.add(record)

    def add(self, where: str, what: str, picture: Picture | None = None) -> None:
        """Add a problem.

        Args:
            where: The file or row that the problem is in.
            what: What is wrong.
            picture: The picture that the problem is about, if it is about one.
        """
        self.found.append(Problem(where, what, picture))

    def raise_any(self, name: str, hint: str) -> None:
        """Raise DataError if there is a problem.

        The message names the data set and shows the number of problems and the first 20 of them.

        Args:
            name: The name of the data set.
            hint: What the user can do.
        """
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
    """The folder that the files of a data set must lie in, unless the user allows files elsewhere."""

    def __init__(self, folder: Path, *, allow_outside: bool, remedy: str = "set data.options.allow_outside") -> None:
        """Remember the folder.

        Args:
            folder: The folder that paths are relative to.
            allow_outside: Whether files may lie outside of the folder.
            remedy: What a message tells the user to do in order to allow that.
        """
        self.folder = folder
        self._remedy = remedy
        self._allow_outside = allow_outside
        self._real = os.path.realpath(folder)
        self._parents: dict[str, bool] = {}

    def problem(self, path: Path) -> str | None:
        """Say why this file cannot be used; None if it can. Links are followed before the path is judged."""
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
    """A source that reads its records from files; a subclass knows one format.

    The files are listed once. `data.options.validation` keeps some of the records from training.

    Attributes:
        name: The registered name of the source.
        rules: A sentence that tells users where the format is documented.
        path: The file or folder that the user gave.
        settings: The options of the source.
    """

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
        """The settings that hold when the user gives none."""

    @abstractmethod
    def read(self, problems: Problems) -> list[Record]:
        """List all records, and add a problem to `problems` for each file or row that cannot be used.

        Raises:
            DataError: There is nothing to read.
        """

    def records(self) -> Sequence[Record]:
        """All records except those that are kept for validation."""
        return [record for record in self._all if record.id not in self._kept]

    def validation(self) -> Sequence[Record]:
        """As many records as `data.options.validation` says, chosen by their ids alone, not by order or by a seed."""
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
    """Read a UTF-8 file, with or without a byte-order mark.

    Raises:
        ValueError: The file cannot be read, is not UTF-8, or is larger than `limit` bytes.
    """
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"larger than {limit} bytes")
        return decode(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def decode(data: bytes) -> str:
    """Decode UTF-8, with or without a byte-order mark. Raises ValueError with the place of the first wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}); save it as UTF-8") from error


def text_problem(text: str) -> str | None:
    """Say why a prompt cannot be used; None if it can."""
    if not text.strip():
        return "the prompt is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the prompt holds half a character (at {error.start})"
    return None
