"""Cuts out the part of a picture around a mask, so that this part is repainted at full size, and puts the result back.

The pixels are equal to those of diffusers' VaeImageProcessor (image_processor.py: get_crop_region, _resize_and_fill,
_resize_and_crop, apply_overlay).
"""

from __future__ import annotations

from typing import Self

import attrs
from PIL import Image, ImageOps

from qframe.errors import ConfigError
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import resize

Box = tuple[int, int, int, int]
"""A rectangle (left, upper, right, lower) in pixels; column `right` and row `lower` do not belong to it any more."""


@attrs.frozen(eq=False)
class Crop:
    """The part of a picture that is repainted, and what is needed to put the result back into the whole picture.

    Attributes:
        image: The part of the picture, enlarged or reduced to the size of the result.
        mask: The same part of the mask, at the same size as `image`.
        box: The rectangle of the part in the whole picture.
        whole_image: The whole picture.
        whole_mask: The whole mask, at the size of the whole picture.
    """

    image: Image.Image
    mask: Image.Image
    box: Box
    whole_image: Image.Image
    whole_mask: Image.Image

    @classmethod
    def around(cls, image: Image.Image, mask: Image.Image, size: Size, padding: int) -> Self:
        """Cut out the part of a picture around its mask.

        Args:
            image: The whole picture.
            mask: The mask of the picture, grey, of any size; it is resized to the picture.
            size: Height and width in pixels that the cut-out part is resized to.
            padding: How many pixels around the parts of the mask that are not black are cut out, too.

        Raises:
            ConfigError: The mask is black everywhere.
        """
        mask = resize(mask, (image.height, image.width))
        if mask.getbbox() is None:
            raise ConfigError(
                "mask_image: nothing to repaint: it is black everywhere", "Paint white what is to be repainted."
            )
        box = crop_box(mask, size, padding)
        return cls(fit_inside(image.crop(box), size), fit_inside(mask.crop(box), size), box, image, mask)

    def put_back(self, made: Image.Image) -> Image.Image:
        """Return the whole picture in which the part is replaced by `made` where the mask is white."""
        return put_back(made, self.whole_image, self.whole_mask, self.box)


def crop_box(mask: Image.Image, size: Size, padding: int) -> Box:
    """Return the rectangle around everything in a grey mask that is not black.

    The rectangle is `padding` pixels larger on each side, and then extended to the aspect ratio of `size`. It does not
    reach beyond the mask, so near the mask's borders it may have another aspect ratio.

    Args:
        mask: The grey mask, at the size of the picture.
        size: Height and width, of which only the aspect ratio is used.
        padding: Pixels to add on each side.

    Raises:
        ValueError: The mask is black everywhere.
    """
    found = mask.getbbox()
    if found is None:
        raise ValueError("a black mask has no part to crop to")
    left, upper = max(found[0] - padding, 0), max(found[1] - padding, 0)
    right, lower = min(found[2] + padding, mask.width), min(found[3] + padding, mask.height)
    ratio = size[1] / size[0]
    if (right - left) / (lower - upper) > ratio:
        upper, lower = _grown(upper, lower, (right - left) / ratio, mask.height)
    else:
        left, right = _grown(left, right, (lower - upper) * ratio, mask.width)
    return left, upper, right, lower


def _grown(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """The stretch from start to end, widened on both sides to `length`, then moved into 0..limit and cut there."""
    more = int(length - (end - start))
    start -= more // 2
    end += more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def fit_inside(image: Image.Image, size: Size) -> Image.Image:
    """Resize a picture so that all of it fits into the middle of `size` (height, width), with its aspect ratio kept.

    The stripes that stay free on two sides are filled by repeating the picture's edges.
    """
    height, width = size
    wider = width / height < image.width / image.height
    inner_width = width if wider else image.width * height // image.height
    inner_height = image.height * width // image.width if wider else height
    inner_width, inner_height = max(inner_width, 1), max(inner_height, 1)
    inner = resize(image, (inner_height, inner_width))
    left, upper = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    fitted = Image.new(image.mode, (width, height))
    fitted.paste(inner, (left, upper))
    if wider and upper > 0:
        fitted.paste(inner.resize((width, upper), box=(0, 0, width, 0)), (0, 0))
        last = inner.resize((width, upper), box=(0, inner.height, width, inner.height))
        fitted.paste(last, (0, upper + inner_height))
    elif not wider and left > 0:
        fitted.paste(inner.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        last = inner.resize((left, height), box=(inner.width, 0, inner.width, height))
        fitted.paste(last, (left + inner_width, 0))
    return fitted


def put_back(made: Image.Image, original: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """Return the original picture (RGB) in which the rectangle `box` is replaced by `made` where the mask is white.

    Args:
        made: The repainted version of the rectangle, at any size; it is resized.
        original: The whole picture.
        mask: The grey mask, at the size of the original; where it is grey, both pictures are mixed.
        box: The rectangle in the original.
    """
    left, upper, right, lower = box
    over = Image.new("RGBA", original.size)
    over.paste(_fill(made, (lower - upper, right - left)), (left, upper))
    kept = Image.new("RGBa", original.size)  # premultiplied: grey places of the mask mix without a dark seam
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    pasted = over.convert("RGB").convert("RGBA")
    pasted.alpha_composite(kept.convert("RGBA"))
    return pasted.convert("RGB")


def _fill(image: Image.Image, size: Size) -> Image.Image:
    """Fill `size` (height, width) with the middle of the picture, in its own proportions."""
    height, width = size
    wider = width / height > image.width / image.height
    outer_width = width if wider else image.width * height // image.height
    outer_height = image.height * width // image.width if wider else height
    filled = Image.new("RGB", (width, height))
    outer = resize(image, (outer_height, outer_width))
    filled.paste(outer, (width // 2 - outer_width // 2, height // 2 - outer_height // 2))
    return filled
