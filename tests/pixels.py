"""Read the pixels of a picture file, without the request that is stored in the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def pixels(file: str | Path) -> tuple[tuple[int, int], bytes]:
    """The size and the values of the pixels; they are equal for two files that differ only in what they store."""
    with Image.open(file) as picture:
        return picture.size, picture.convert("RGB").tobytes()
