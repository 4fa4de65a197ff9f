"""Pictures as small data URIs, within a budget of bytes for the whole page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import attrs
from PIL import Image

from qframe.errors import DataError
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_picture

_LARGEST_SIDE = 320
_KEPT_SIDE = 160  # up to here a picture is embedded without loss: its pixels are what matters
_QUALITY = 82


@attrs.frozen(kw_only=True)
class Thumbnail:
    """A picture in the page: its address, its size in pixels, and whether it is shown enlarged, pixel by pixel."""

    uri: str
    width: int
    height: int
    enlarged: bool


@attrs.define
class Album:
    """Makes thumbnails until `left` bytes are used up. dropped: what did not fit; damaged: what cannot be opened."""

    left: int
    dropped: int = 0
    damaged: list[str] = attrs.field(factory=list)

    def add(self, file: Path) -> Thumbnail | None:
        """The picture of a file, or None: then `dropped` or `damaged` tells why."""
        try:
            picture = open_picture(Picture(f"{file.parent.name}/{file.name}", file))
        except (DataError, OSError) as error:
            self.damaged.append(error.message if isinstance(error, DataError) else f"{file.name}: {error.strerror}")
            return None
        enlarged = max(picture.size) <= _KEPT_SIDE
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        if enlarged:
            picture.save(data, "PNG", optimize=True)
        else:
            picture.save(data, "WEBP", quality=_QUALITY)
        uri = f"data:image/{'png' if enlarged else 'webp'};base64,{base64.b64encode(data.getvalue()).decode()}"
        if len(uri) > self.left:
            self.dropped += 1
            return None
        self.left -= len(uri)
        return Thumbnail(uri=uri, width=picture.width, height=picture.height, enlarged=enlarged)
