"""One picture to make: what is asked for, how it is made, and the file it goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from qframe.compose import Composition
from qframe.interfaces import Request
from qframe.pictures.picture import Picture
from qframe.sample.jobs.asked import Asked, OwnField, as_request, settled
from qframe.sample.jobs.picture_files import check_text
from qframe.sample.jobs.rehearse import Rehearsal
from qframe.sample.jobs.sources import digest_of, unchanged_picture
from qframe.sample.jobs.stored import Stored


@attrs.frozen(eq=False, kw_only=True)
class Job:
    """One picture to make. origin: what messages call it. stored: what it will store, if anything."""

    origin: str
    file: Path
    request: Request
    seed: int
    stored: Stored


@attrs.frozen(eq=False, kw_only=True)
class Desk:
    """Makes jobs of requests: with the components that will run them, and what all their pictures store alike."""

    composition: Composition
    setting: Stored
    fields: Sequence[OwnField]
    rehearsal: Rehearsal

    def jobs(
        self, asked: Asked, files: Sequence[Path], origin: str, pictures: Mapping[str, Sequence[Given]]
    ) -> list[Job]:
        """One job per file. ConfigError or DataError: a value that cannot be met, or a picture that cannot be read."""
        request = as_request(
            asked,
            self.composition.recipe.request_type,
            self.fields,
            {key: [given.picture for given in several] for key, several in pictures.items()},
        )
        digests = {given.path: given.sha256 for several in pictures.values() for given in several}
        made = []
        for number, file in enumerate(files):
            values = settled(asked, request, self.fields, asked.seed + number)
            values |= {key: [given.path for given in several] for key, several in pictures.items() if several}
            stored = attrs.evolve(self.setting, request=values, files=digests)
            check_text(stored.text())
            made.append(Job(origin=origin, file=file, request=request, seed=asked.seed + number, stored=stored))
        return made


@attrs.frozen
class Given:
    """A picture file of a request: path as it is stored, digest, and what reads it."""

    path: str
    sha256: str
    picture: Picture

    @classmethod
    def at(cls, path: Path, origin: str) -> Given:
        """The picture of a file. DataError, naming `origin`, if it cannot be read."""
        sha256 = digest_of(path, origin)
        return cls(str(path), sha256, unchanged_picture(origin, path, sha256))


def numbered(output: Path, count: int) -> list[Path]:
    """The files of `count` pictures: FILE, or FILE-1, FILE-2, ..."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
