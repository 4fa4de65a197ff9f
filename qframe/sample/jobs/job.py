"""Jobs, each of which is one picture to make, and the desk that makes jobs of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import attrs

from qframe.compose import Composition
from qframe.interfaces import Request, Settled
from qframe.pictures.picture import Picture
from qframe.sample.jobs.asked import Asked, OwnField, make_request, own_fields, stored_values
from qframe.sample.jobs.picture_files import check_text
from qframe.sample.jobs.rehearse import Rehearsal
from qframe.sample.jobs.sources import digest_of, unchanged_picture
from qframe.sample.jobs.stored import Stored, setting


@attrs.frozen(eq=False, kw_only=True)
class Job:
    """A job: one picture to make.

    Attributes:
        origin: The words by which messages name the job, for example file and line.
        file: The file that the picture is written to.
        request: The request for the picture, without a generator.
        settled: What the rehearsal settled of the request; None if it kept nothing, so that the run settles it again.
        seed: The seed of the picture.
        stored: How the picture is made, which its metadata will hold unless the user wants none.
    """

    origin: str
    file: Path
    request: Request
    settled: tuple[Settled, ...] | None = None
    seed: int
    stored: Stored


@attrs.frozen(eq=False, kw_only=True)
class Desk:
    """A desk, which turns requests in plain values into jobs.

    Attributes:
        composition: The components that will run the jobs.
        setting: The part of the metadata that is the same in all pictures.
        fields: The fields that the family's requests add.
        rehearsal: Settles the requests before weights are loaded.
    """

    composition: Composition
    setting: Stored
    fields: Sequence[OwnField]
    rehearsal: Rehearsal

    @classmethod
    def of(cls, composition: Composition, loras: Mapping[Path, float]) -> Self:
        """Make the desk of a composition and of the LoRA files that it runs with, each with its scale."""
        return cls(
            composition=composition,
            setting=setting(composition, loras),
            fields=own_fields(composition.recipe.request_type),
            rehearsal=Rehearsal(composition),
        )

    def jobs(
        self, asked: Asked, files: Sequence[Path], origin: str, pictures: Mapping[str, Sequence[Given]]
    ) -> list[Job]:
        """Make the jobs of one request, one for each file. They are not rehearsed yet.

        Args:
            asked: The request in plain values.
            files: The files that its pictures are written to.
            origin: The words by which messages name the request.
            pictures: The pictures of its picture fields, by key.

        Raises:
            ConfigError: A value cannot be met, or the request is too long for a picture's metadata.
        """
        recipe = self.composition.recipe
        request = make_request(
            asked,
            recipe.request_type,
            recipe.sampling,
            self.fields,
            {key: [given.picture for given in several] for key, several in pictures.items()},
        )
        digests = {given.path: given.sha256 for several in pictures.values() for given in several}
        made = []
        for number, file in enumerate(files):
            values = stored_values(asked, request, self.fields, asked.seed + number)
            values |= {key: [given.path for given in several] for key, several in pictures.items() if several}
            stored = attrs.evolve(self.setting, request=values, files=digests)
            check_text(stored.text())
            made.append(Job(origin=origin, file=file, request=request, seed=asked.seed + number, stored=stored))
        return made

    def rehearsed(self, jobs: Sequence[Job]) -> list[Job]:
        """Settle the request that these jobs share once, and return the jobs with what was settled.

        Raises:
            ConfigError: The request cannot be met.
            DataError: A picture or a prompt cannot be used.
        """
        settled = self.rehearsal.settle(jobs[0].request)
        return [attrs.evolve(job, settled=settled) for job in jobs]


@attrs.frozen
class Given:
    """A picture file that a request names.

    Attributes:
        path: The path of the file, as a picture's metadata stores it.
        sha256: The digest of the file.
        picture: The picture, which is read when it is opened. Opening raises an error if the file has changed.
    """

    path: str
    sha256: str
    picture: Picture

    @classmethod
    def at(cls, path: Path, origin: str) -> Given:
        """Return the picture of a file, with the digest of the file.

        Raises:
            DataError: The file cannot be read; the message names it by `origin`.
        """
        sha256 = digest_of(path, origin)
        return cls(str(path), sha256, unchanged_picture(origin, path, sha256))


def numbered(output: Path, count: int) -> list[Path]:
    """Return the files for `count` pictures: `output` itself for one, else OUTPUT-1, OUTPUT-2 and so on."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
