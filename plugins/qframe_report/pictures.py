"""Makes small copies of pictures that the page embeds as data URIs, up to a number of bytes for the whole page."""

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
_KEPT_SIDE = 160  # pictures up to this side are embedded without loss, so that single pixels can be seen
_QUALITY = 82


@attrs.frozen(kw_only=True)
class Thumbnail:
    """A small copy of a picture, as the page embeds it.

    Attributes:
        uri: The encoded picture, as a data URI.
        width: Width in pixels.
        height: Height in pixels.
        enlarged: Whether the page enlarges the picture without smoothing, because it has at most 160 pixels a side.
    """

    uri: str
    width: int
    height: int
    enlarged: bool


@attrs.define
class Album:
    """Makes the thumbnails of one page until the bytes that its pictures may take are used up.

    Attributes:
        left: How many bytes further pictures may take.
        dropped: How many pictures were left out because they did not fit.
        damaged: A message for each picture that could not be opened.
    """

    left: int
    dropped: int = 0
    damaged: list[str] = attrs.field(factory=list)

    def add(self, file: Path) -> Thumbnail | None:
        """Make the thumbnail of a picture file.

        Returns:
            The thumbnail; None if its bytes do not fit any more, which `dropped` counts, or if the file cannot be
            opened, which adds a message to `damaged`.
        """
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
