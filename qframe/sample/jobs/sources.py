"""Digests of the files that a request names, and pictures that are read later only if their file is unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs

from qframe.errors import DataError, WeightsError
from qframe.files.storage import file_digest
from qframe.pictures.picture import Picture


def digest_of(path: Path, origin: str, kind: type[DataError] | type[WeightsError] = DataError) -> str:
    """Compute the sha256 of a file.

    Args:
        path: The file.
        origin: The words by which the error names the file.
        kind: The class of the error.

    Raises:
        DataError: The file cannot be read or is no plain file. If `kind` is another class, that error is raised.
    """
    try:
        if path.exists() and not path.is_file():
            raise kind(f"{origin}: not a file", "Give a plain file.")
        return file_digest(path)
    except OSError as error:
        raise kind(
            f"{origin}: cannot be read ({error.strerror})", "Check that the file exists and can be read."
        ) from error


def unchanged_picture(origin: str, path: Path, sha256: str) -> Picture:
    """Return the picture of a file, which is read when the picture is opened.

    Opening it raises DataError if the file has changed since its digest was taken.
    """
    return Picture(origin, _Unchanged(origin, path, sha256))


@attrs.frozen
class _Unchanged:
    origin: str
    path: Path
    sha256: str

    def __call__(self) -> bytes:
        data = Picture(self.origin, self.path).read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(f"{self.origin}: {self.path} was changed while this ran", "Run it again.")
        return data
