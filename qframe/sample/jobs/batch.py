"""Reads a file of requests into jobs: checks all lines before the first runs, and leaves out finished pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

import attrs

from qframe.config.strict import InvalidError, unstructure
from qframe.data.files import Root
from qframe.data.json_lines import json_lines
from qframe.data.problems import Problems
from qframe.errors import DataError, QframeError, bullet_list
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_picture
from qframe.sample.jobs.asked import Asked, asked_type, describe, given_paths, read_asked
from qframe.sample.jobs.job import Desk, Given, Job, numbered
from qframe.sample.jobs.picture_files import FORMATS
from qframe.sample.jobs.stored import read_stored

_LONGEST_NAME = 200  # bytes; file systems take 255, and a draft's name is longer


@attrs.frozen(kw_only=True)
class Line(Asked):
    """A line of a batch file: a request in plain values, and the name of its result.

    Attributes:
        id: The name of the result if `output` is not given.
        output: The name of the result's file in the folder of results.
    """

    id: str | None = None
    output: str | None = None


class Batch:
    """The requests of a file of JSON lines, and the folder of their results.

    Attributes:
        made: The jobs of all lines, those of pictures that exist too; empty before `jobs` is called.
    """

    def __init__(
        self,
        desk: Desk,
        path: Path,
        output: Path,
        defaults: Mapping[str, Any],
        *,
        overwrite: bool,
        allow_outside: bool,
    ) -> None:
        """Open a batch.

        Args:
            desk: Turns requests into jobs.
            path: The file of requests.
            output: The folder of the results.
            defaults: Values for lines that do not give them.
            overwrite: Whether pictures that exist but were made from another request are replaced.
            allow_outside: Whether lines may name pictures outside of the folder of the file.
        """
        self._desk, self._path, self._output = desk, path, output
        self._defaults, self._overwrite = defaults, overwrite
        self._kind = cast("type[Line]", asked_type(desk.fields, Line))
        self._root = Root(path.parent, allow_outside=allow_outside, remedy="give --allow-outside")
        self._problems = Problems()
        self._taken: dict[str, str] = {}
        self.made: list[Job] = []

    def jobs(self) -> tuple[list[Job], int]:
        """Return the jobs of pictures still to make, in the order of the lines, and the number of pictures that exist.

        Raises:
            DataError: Lines cannot be met; the message names every one of them.
        """
        todo: list[Job] = []
        done = 0
        for number, row in json_lines(self._path, self._problems, self._where):
            where = self._where(number)
            before = len(self._problems.found)
            made = self._line(number, row, where)
            self.made += made
            missing = [job for job in made if len(self._problems.found) == before and self._is_missing(job)]
            done += len(made) - len(missing)
            if len(self._problems.found) == before and missing:
                self._about(where, partial(self._rehearse, missing, todo))
        if not todo and not done and not self._problems.found:
            raise DataError(f"{self._path}: there are no requests", "Each line is a JSON object with a prompt.")
        found = [f"{problem.origin}: {problem.message}" for problem in self._problems.found]
        if found:
            raise DataError(
                f"{self._path}: {len(found)} problem{'s' if len(found) > 1 else ''}\n{bullet_list(found)}",
                "Nothing was loaded. Lines are explained in docs/guides/many-pictures.md.",
            )
        return todo, done

    def _rehearse(self, missing: Sequence[Job], todo: list[Job]) -> None:
        todo += self._desk.rehearsed(missing)

    def _where(self, number: int) -> str:
        return f"{self._path.name}:{number}"

    def _line(self, number: int, row: Mapping[str, Any], where: str) -> list[Job]:
        try:
            line = cast("Line", read_asked({**self._defaults, **row}, self._kind))
        except InvalidError as error:
            for problem in error.problems:
                self._problems.add(where, describe(problem))
            return []
        pictures: dict[str, list[Given]] = {}
        for field in self._desk.fields:
            if field.kind == "picture":
                paths = given_paths(line, field)
                own = field.key in row
                pictures[field.key] = [given for path in paths if (given := self._given(path, where, field.key, own))]
        files = numbered(self._output / self._name(number, line, pictures), line.num_images)
        before = len(self._problems.found)
        for file in files:
            self._check_file(file, where)
        if len(self._problems.found) > before:
            return []
        made: list[Job] = []
        self._about(where, lambda: made.extend(self._desk.jobs(line, files, where, pictures)))
        return made

    def _given(self, path: str, where: str, key: str, own: bool) -> Given | None:
        """The picture of a path; None if there is a problem, which is noted.

        A path that the line names itself (`own`) is relative to the file of requests and must lie within its folder. A
        path that comes from an option is taken as it is.
        """
        file = self._root.folder / path if own else Path(path)
        problem = self._root.problem(file) if own else None
        if problem is not None:
            self._problems.add(where, f"{key}: {path!r}: {problem}")
            return None
        found: list[Given] = []
        self._about(where, lambda: found.append(Given.at(file, f"{key} {path}")))
        return found[0] if found else None

    def _name(self, number: int, line: Line, pictures: Mapping[str, Sequence[Given]]) -> str:
        if line.output is not None:
            return line.output
        if line.id is not None:
            return f"{line.id}.png"
        contents = unstructure(line) | {key: [given.sha256 for given in several] for key, several in pictures.items()}
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
        return f"line-{number:05d}-{digest[:12]}.png"

    def _check_file(self, file: Path, where: str) -> None:
        name = PurePosixPath(os.path.relpath(file, self._output))
        if not str(name).isprintable() or any(len(part.encode()) > _LONGEST_NAME for part in name.parts):
            problem: str | None = "cannot be the name of a file"
        elif any(part.startswith(".") for part in name.parts):
            problem = "leads outside of the folder of results, or is hidden"
        elif not Path(os.path.realpath(file.parent)).is_relative_to(os.path.realpath(self._output)):
            problem = "leads outside of the folder of results by a link"
        elif file.suffix.lower() not in FORMATS:
            problem = f"must end in one of {', '.join(FORMATS)}"
        elif (other := self._taken.setdefault(str(name).casefold(), where)) != where:
            problem = f"is also the result of {other}"
        else:
            return
        self._problems.add(where, f"its result {str(name)!a} {problem}")

    def _is_missing(self, job: Job) -> bool:
        """Whether a picture is still to be made. One that exists, made from another request, is noted as a problem."""
        if not job.file.exists():
            return True
        try:
            different = read_stored(job.file).differences(job.stored)
        except QframeError:
            different = ["no request of qframe in it"]
        if not different:
            return not _is_complete(job.file)
        if not self._overwrite:
            self._problems.add(
                job.origin,
                f"{job.file} is there, made from something else ({', '.join(different)}); --overwrite makes it anew",
            )
        return True

    def _about(self, where: str, work: Callable[[], None]) -> None:
        """Call `work`, and note an error that it raises as a problem of the line."""
        try:
            work()
        except QframeError as error:
            self._problems.add(where, error.message if error.hint is None else f"{error.message}. {error.hint}")


def _is_complete(file: Path) -> bool:
    try:
        open_picture(Picture(str(file), file))
    except DataError:
        return False
    return True
