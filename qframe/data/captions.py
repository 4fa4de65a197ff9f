"""Makes the prompt of a record from its caption: tags are shuffled, templates filled in, trigger words added."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import PurePosixPath

import attrs
from PIL import Image

from qframe.data.options import SourceOptions, as_templates
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_picture


@attrs.frozen
class Captions:
    """The rules by which the options of a data source change its captions.

    Attributes:
        options: The options of the data source.
    """

    options: SourceOptions

    @property
    def needed(self) -> bool:
        """Whether records need a caption: a template without {caption} makes a prompt without one."""
        templates = as_templates(self.options.template)
        return not templates or any("{caption}" in template for template in templates)

    def prompt(self, record: Record, copy: int = 0) -> str:
        """Return the prompt of a record, made from its caption.

        Args:
            record: The record, whose `prompt` is the caption as the files have it.
            copy: Which repeat of the record is meant, counted from 0. It decides the template, and the order of tags.
        """
        options, text = self.options, record.prompt
        if options.shuffle_tags:
            text = _shuffled(text, record.id, copy, options)
        templates = as_templates(options.template)
        if templates:
            name = PurePosixPath(record.id.replace("\\", "/")).name.replace("_", " ")
            values = {"{caption}": text, "{trigger}": options.trigger or "", "{name}": name}
            text = templates[copy % len(templates)]
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
        text = " ".join(part for part in (options.prefix, text, options.suffix) if part)
        if options.trigger is None:
            return text
        text = text.replace("[trigger]", options.trigger)
        return text if options.trigger in text else f"{options.trigger}, {text}".rstrip(", ")


def _shuffled(text: str, record: str, copy: int, options: SourceOptions) -> str:
    """Put the tags of a caption into another order, which depends on the record and the number of its repeat."""
    tags = [tag.strip() for tag in text.split(options.tag_separator or ",") if tag.strip()]
    kept, rest = tags[: options.keep_tags], tags[options.keep_tags :]
    seed = int.from_bytes(hashlib.sha256(f"{record}\0{copy}".encode()).digest()[:8], "big")
    random.Random(seed).shuffle(rest)
    separator = options.tag_separator or ","
    return (separator if separator[-1:].isspace() else f"{separator} ").join([*kept, *rest])


def alpha_mask(target: Picture) -> Picture:
    """Return the transparency of a picture as a picture in grey: white where it is opaque, black where transparent.

    It is made when it is opened. A picture without transparency gives white.
    """
    return Picture(f"{target.origin}, alpha", _Alpha(target))


@attrs.frozen(eq=False)
class _Alpha:
    """Returns the transparency of a picture as the bytes of a picture file when it is called."""

    target: Picture

    def __call__(self) -> bytes:
        buffer = io.BytesIO()
        # Without compression, so that the bytes, and with them the cache's keys, depend on no library's version.
        alpha: Image.Image = open_picture(self.target, background=None).getchannel("A")
        alpha.save(buffer, format="BMP")
        return buffer.getvalue()
