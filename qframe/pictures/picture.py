"""Pictures that have not been opened: where their bytes lie, and what messages call them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import attrs

from qframe.errors import DataError
from qframe.pictures.geometry import Geometry


@attrs.frozen(eq=False)
class Picture:
    """A picture that has not been opened.

    Attributes:
        origin: What messages call the picture, for example "train/0001.png" or "row 12, column control".
        source: The picture's file, its encoded bytes, or a function that returns them or raises DataError.
    """

    origin: str
    source: Path | bytes | Callable[[], bytes]

    def read(self) -> bytes:
        """Return the encoded bytes of the picture. DataError if they cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        if not isinstance(self.source, Path):
            return self.source()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot read picture {self.source}: {error.strerror}",
                "Check that the file exists and can be read.",
            ) from error

    def digest(self) -> str:
        """Return the sha256 of the encoded bytes, which stands for the picture in the cache's keys."""
        return hashlib.sha256(self.read()).hexdigest()


@attrs.frozen(eq=False)
class PixelInput:
    """A picture and the geometry that it is brought into before it is encoded, or read as a loss map.

    Attributes:
        picture: The picture, not opened yet.
        geometry: Decides the size that the picture is resized to.
    """

    picture: Picture
    geometry: Geometry
