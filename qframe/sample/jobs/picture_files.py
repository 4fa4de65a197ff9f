"""Writes picture files with a text in their metadata, and reads this text from any picture, even a stranger's."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from qframe.errors import ConfigError, UntrustedError
from qframe.files.storage import write_file
from qframe.pictures.channels import with_channels
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import DAMAGED, open_header

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LONGEST = 60_000
"""The largest text in bytes: it fits into the 64 KB that a JPEG has for all of EXIF."""

_KEYWORD = "qframe"
_ASCII = b"ASCII\0\0\0"  # EXIF 2.32, 4.6.5, tag UserComment: the character code in its first 8 bytes


def encode_picture(image: Image.Image, suffix: str, text: str | None = None) -> bytes:
    """Encode a picture in the format that the suffix of its file names.

    Args:
        image: The picture, RGB or RGBA; a JPEG is laid on white.
        suffix: For example ".png".
        text: ASCII text of at most LONGEST bytes to store with it; `check_text` checks its length. A PNG keeps it in a
            text chunk "qframe", a JPEG or WebP in EXIF's UserComment.
    """
    kind = FORMATS[suffix.lower()]
    options: dict[str, Any] = {}
    if text is not None and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(_KEYWORD, text)
    elif text is not None:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
        options["exif"] = exif.tobytes()
    if kind == "JPEG":
        image = with_channels(image, 3)  # a JPEG has no transparency
    data = io.BytesIO()
    image.save(data, format=kind, quality=95, **options)
    return data.getvalue()


def check_text(text: str) -> str:
    """Check that a text is short enough for a picture's metadata, and return it.

    Raises:
        ConfigError: The text is too long.
    """
    if len(text) > LONGEST:
        raise ConfigError(
            f"what the picture would store of its request has {len(text)} bytes, at most {LONGEST} fit",
            "Shorten the prompt, or store nothing: --no-metadata.",
        )
    return text


def write_picture(file: Path, image: Image.Image, text: str | None = None) -> None:
    """Write a picture file completely or not at all, and make its folder if that does not exist.

    Raises:
        ResourceError: The disk is full.
    """
    write_file(file, encode_picture(image, file.suffix, text))


def read_text(picture: Picture) -> str | None:
    """Read the text that `encode_picture` stored in a picture; None if it has none. No pixels are decoded.

    Raises:
        DataError: The file is no picture of a known format.
        UntrustedError: The text is longer than LONGEST.
    """
    image = open_header(picture)
    try:
        if image.format == "PNG":
            found = image.info.get(_KEYWORD)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
            found = None
            if isinstance(comment, bytes) and comment.startswith(_ASCII):
                found = comment.removeprefix(_ASCII).decode("ascii", "replace")
    except DAMAGED:
        return None  # metadata that cannot be read hold nothing of ours
    if not isinstance(found, str):
        return None
    if len(found) > LONGEST:
        raise UntrustedError(f"{picture.origin}: its stored request has {len(found)} bytes, at most {LONGEST} are read")
    return found
