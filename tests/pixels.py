"""What a picture file shows, without the request that is stored in it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def pixels(file: str | Path) -> tuple[tuple[int, int], bytes]:
    """Size and values; two files can differ in what they store and show the same."""
    with Image.open(file) as picture:
        return picture.size, picture.convert("RGB").tobytes()
