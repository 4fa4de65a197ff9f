"""The base class of data sources that read files, and checks of paths and of files of text."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import attrs

from qframe.data.captions import Captions, alpha_mask
from qframe.data.options import SourceOptions
from qframe.data.problems import Problems
from qframe.data.repeats import repeated
from qframe.errors import DataError
from qframe.files.text import decode_text
from qframe.interfaces import Record, RecordSource, Survey

_LARGEST_CAPTION = 1_000_000


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
        captions: Makes prompts of the captions that `read` finds.
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
        self.captions = Captions(self.settings)

    @staticmethod
    @abstractmethod
    def default_options() -> SourceOptions:
        """Return the options that are used if the user gives none."""

    @abstractmethod
    def read(self, problems: Problems) -> list[Record]:
        """Return the records in the files, and add a problem to `problems` for each file or row that cannot be used.

        The prompt of a record is its caption, or `data.options.prompt`; the other options change it afterwards.

        Raises:
            DataError: The file or folder holds nothing of the source's format.
        """

    def times(self, record: Record) -> int:
        """Return how many times an epoch visits a record: `data.options.repeats`, unless a subclass knows more."""
        return self.settings.repeats

    def records(self) -> Sequence[Record]:
        """Return the records to train on: all except those that are kept for validation, with their repeats.

        Raises:
            DataError: There are problems, which the message lists, or no record would be left to train on.
        """
        records = [record for record in self._all if record.id not in self._kept]
        return repeated(records, [self.times(record) for record in records], self.captions.prompt)

    def validation(self) -> Sequence[Record]:
        """Return the records that are kept for validation, as many as `data.options.validation` says.

        Those are the records whose ids have the smallest sha256. Their order in the files does not matter, and there is
        no seed.

        Raises:
            DataError: There are problems, which the message lists, or no record would be left to train on.
        """
        return [self._prompted(record) for record in self._all if record.id in self._kept]

    def survey(self) -> Survey:
        """Read the files, and return all records and all problems that are found, for `qframe data check`.

        Repeats are left out.
        """
        problems = Problems()
        records = [self._prompted(record) for record in self._read(problems)]
        return Survey(records=records, problems=problems.found, unusable=frozenset(problems.unusable))

    def _prompted(self, record: Record) -> Record:
        return attrs.evolve(record, prompt=self.captions.prompt(record))

    def _read(self, problems: Problems) -> list[Record]:
        records = self.read(problems)
        if self.settings.alpha_mask:
            return [
                record if record.loss_map else attrs.evolve(record, loss_map=alpha_mask(record.target))
                for record in records
            ]
        return records

    @cached_property
    def _all(self) -> list[Record]:
        problems = Problems()
        records = self._read(problems)
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
