"""Brings pictures to the number of channels that a codec or a file format takes."""

from __future__ import annotations

from PIL import Image

from qframe.pictures.pixels import WHITE


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an RGB or RGBA picture with 3 or 4 channels: made opaque, or laid on white, if it has others."""
    if len(image.getbands()) == channels:
        return image
    if channels == 4:
        image = image.copy()
        image.putalpha(255)
        return image
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, WHITE), image.getchannel("A"))
