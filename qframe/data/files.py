"""The base class of data sources that read files, checks of paths and texts, and the list of a data set's problems."""

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
from qframe.files.text import decode_text
from qframe.interfaces import Problem, Record, RecordSource, Survey
from qframe.pictures.picture import Picture

_SHOWN = 20
_LARGEST_CAPTION = 1_000_000


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

    def add(self, where: str, what: str, picture: Picture | None = None) -> None:
        """Add a problem to the list.

        Args:
            where: The file or row that has the problem.
            what: A text that says what is wrong.
            picture: The picture that has the problem; None if the problem is not in a picture.
        """
        self.found.append(Problem(where, what, picture))

    def raise_any(self, name: str, hint: str) -> None:
        """Raise a DataError if the list holds a problem; otherwise do nothing.

        The message names the data set, gives the number of problems and shows the first 20 of them.

        Args:
            name: The name of the data set, for the message.
            hint: The last sentence of the message, which says what the user can do.
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
    """The folder of a data set, and the rule that its files must lie inside, unless the user allows files elsewhere.

    Attributes:
        folder: The folder of the data set.
    """

    def __init__(self, folder: Path, *, allow_outside: bool, remedy: str = "set data.options.allow_outside") -> None:
        """Remember the folder and the rule.

        Args:
            folder: The folder of the data set.
            allow_outside: Whether files may lie outside of the folder.
            remedy: What the user must do to allow files outside of the folder, for messages.
        """
        self.folder = folder
        self._remedy = remedy
        self._allow_outside = allow_outside
        self._real = os.path.realpath(folder)
        self._parents: dict[str, bool] = {}

    def problem(self, path: Path) -> str | None:
        """Return the reason why the file at `path` cannot be used, or None if it can.

        It must exist, be a regular file, and lie in the folder unless files outside are allowed. If `path` is a link,
        the place that the link leads to is checked.
        """
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
    """The base class of data sources that read their records from files.

    A subclass reads one format: it sets `name` and implements `default_options` and `read`. The records that `read`
    returns are split into those to train on, and the `data.options.validation` records that are kept for validation.

    Attributes:
        name: The registered name of the source.
        rules: A sentence that tells users where the format is documented, for error messages.
        path: The file or folder that the user gave.
        settings: The options of the source, those of `default_options` if the user gave none.
    """

    name: str
    rules: ClassVar[str] = "Fields and paths are explained in docs/reference/data-formats.md."

    def __init__(self, options: SourceOptions | None, path: Path | None) -> None:
        """Remember the options and the path, without reading files. Raises DataError if `path` is None."""
        super().__init__(options, path)
        if path is None:
            raise DataError(f"source {self.name!r} reads files, but no path is given", "Give --data PATH.")
        self.path: Path = path
        self.settings = options if options is not None else self.default_options()

    @staticmethod
    @abstractmethod
    def default_options() -> SourceOptions:
        """Return the options that are used if the user gives none."""

    @abstractmethod
    def read(self, problems: Problems) -> list[Record]:
        """Return the records in the files, and add a problem to `problems` for each file or row that cannot be used.

        Raises:
            DataError: The file or folder holds nothing of the source's format.
        """

    def records(self) -> Sequence[Record]:
        """Return the records to train on: all except those that are kept for validation.

        Raises:
            DataError: There are problems, which the message lists, or no record would be left to train on.
        """
        return [record for record in self._all if record.id not in self._kept]

    def validation(self) -> Sequence[Record]:
        """Return the records that are kept for validation, as many as `data.options.validation` says.

        Those are the records whose ids have the smallest sha256. Their order in the files does not matter, and there is
        no seed.

        Raises:
            DataError: There are problems, which the message lists, or no record would be left to train on.
        """
        return [record for record in self._all if record.id in self._kept]

    def survey(self) -> Survey:
        """Read the files, and return all records and all problems that are found, for `qframe data check`."""
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
    """Return the text of a UTF-8 file. A byte-order mark at its beginning is left out.

    Raises:
        ValueError: The file cannot be read, is not UTF-8, or is larger than `limit` bytes.
    """
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"larger than {limit} bytes")
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def text_problem(text: str) -> str | None:
    """Return the reason why a prompt cannot be used (it is empty, or is no valid Unicode), or None if it can."""
    if not text.strip():
        return "the prompt is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the prompt holds half a character (at {error.start})"
    return None
