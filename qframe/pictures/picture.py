"""Pictures that are not opened yet: where their bytes come from, and the names that messages use for them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import attrs

from qframe.errors import DataError
from qframe.pictures.geometry import Geometry

_ASKING = threading.RLock()
"""Held while a data source is asked for bytes: pictures are opened in several threads, and sources know of one."""


@attrs.frozen(eq=False)
class Picture:
    """A picture that is not opened yet.

    Attributes:
        origin: The name that messages use for the picture, for example "train/0001.png" or "row 12, column control".
        source: The picture's file, or its encoded bytes, or a function that returns the encoded bytes. The function may
            raise DataError.
    """

    origin: str
    source: Path | bytes | Callable[[], bytes] = attrs.field(repr=lambda source: _told(source))

    def read(self) -> bytes:
        """Return the picture's encoded bytes, such as those of a PNG file. Raises DataError if they cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        if not isinstance(self.source, Path):
            with _ASKING:
                return self.source()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot read picture {self.source}: {error.strerror}",
                "Check that the file exists and can be read.",
            ) from error

    def digest(self) -> str:
        """Return the sha256 of the picture's encoded bytes, in hexadecimal. The keys of the cache contain it."""
        return hashlib.sha256(self.read()).hexdigest()


@attrs.frozen(eq=False)
class PixelInput:
    """A picture, and the geometry that decides its size when it is encoded by a model or read as a loss map.

    Attributes:
        picture: The picture, not opened yet.
        geometry: Decides the size to which the picture is resized.
    """

    picture: Picture
    geometry: Geometry


def _told(source: Path | bytes | Callable[[], bytes]) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else repr(source)
