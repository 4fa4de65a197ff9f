"""One picture to make: what is asked for, how it is made, and the file it goes to."""

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
    """One picture to make.

    Attributes:
        origin: What messages call it.
        file: The file that it goes to.
        request: The request for it, without a generator.
        settled: What the rehearsal settled of the request; None where it kept nothing, and the run settles it.
        seed: The seed of the picture.
        stored: What the picture will store of how it was made, unless the user wants it to store nothing.
    """

    origin: str
    file: Path
    request: Request
    settled: tuple[Settled, ...] | None = None
    seed: int
    stored: Stored


@attrs.frozen(eq=False, kw_only=True)
class Desk:
    """Turns what is asked for into jobs.

    Attributes:
        composition: The components that will run the jobs.
        setting: What all pictures store alike.
        fields: The fields that the family's requests add.
        rehearsal: Settles the requests before weights are loaded.
    """

    composition: Composition
    setting: Stored
    fields: Sequence[OwnField]
    rehearsal: Rehearsal

    @classmethod
    def of(cls, composition: Composition, loras: Mapping[Path, float]) -> Self:
        """The desk of a composition, with LoRA files and the scale of each."""
        return cls(
            composition=composition,
            setting=setting(composition, loras),
            fields=own_fields(composition.recipe.request_type),
            rehearsal=Rehearsal(composition),
        )

    def jobs(
        self, asked: Asked, files: Sequence[Path], origin: str, pictures: Mapping[str, Sequence[Given]]
    ) -> list[Job]:
        """The jobs of one request, one per file; they are not rehearsed yet.

        Args:
            asked: The request in plain values.
            files: The files of its pictures.
            origin: What messages call the request.
            pictures: The pictures of its picture fields, by key.

        Raises:
            ConfigError: A value cannot be met, or a picture could not store the request.
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
        """Settle the request that these jobs share, once, and give it to each of them.

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
        path: The path as it is stored.
        sha256: The digest of the file.
        picture: Reads the file, and refuses it if it has changed.
    """

    path: str
    sha256: str
    picture: Picture

    @classmethod
    def at(cls, path: Path, origin: str) -> Given:
        """The picture of a file.

        Raises:
            DataError: The file cannot be read; the message calls it `origin`.
        """
        sha256 = digest_of(path, origin)
        return cls(str(path), sha256, unchanged_picture(origin, path, sha256))


def numbered(output: Path, count: int) -> list[Path]:
    """The files of `count` pictures: FILE, or FILE-1, FILE-2, ..."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
