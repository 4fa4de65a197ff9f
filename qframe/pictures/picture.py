"""A picture before it is opened: where its bytes lie, and what messages call it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import attrs

from qframe.errors import DataError
from qframe.pictures.geometry import Geometry


@attrs.frozen(eq=False)
class Picture:
    """A picture that has not been opened: its bytes, where they lie, or what reads them.

    origin: what messages call it, e.g. "train/0001.png" or "row 12, column control". A source that reads raises
    DataError.
    """

    origin: str
    source: Path | bytes | Callable[[], bytes]

    def read(self) -> bytes:
        """The encoded bytes. DataError if the file cannot be read."""
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
        """sha256 of the bytes: what a cache key holds of a picture."""
        return hashlib.sha256(self.read()).hexdigest()


@attrs.frozen(eq=False)
class PixelInput:
    """A picture and the geometry it is brought into, for the codec (or as a grey weight map)."""

    picture: Picture
    geometry: Geometry
