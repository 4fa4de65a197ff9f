"""Inpainting a part of a picture at full size: the part around the mask, and its way back into the picture.

Pixel for pixel what diffusers' VaeImageProcessor does (image_processor.py: get_crop_region, _resize_and_fill,
_resize_and_crop, apply_overlay).
"""

from __future__ import annotations

from PIL import Image, ImageOps

from qframe.pictures.geometry import Size
from qframe.pictures.pixels import resize

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels; the last two lie outside."""


def crop_box(mask: Image.Image, size: Size, padding: int) -> Box:
    """The part of a grey mask that is not black, `padding` pixels wider on each side, in the proportions of `size`.

    Within the mask: at its borders the proportions give way. ValueError if it is black.
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
    """The stretch from start to end, grown on both sides to `length`, moved into 0..limit and cut there."""
    more = int(length - (end - start))
    start -= more // 2
    end += more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def fit_inside(image: Image.Image, size: Size) -> Image.Image:
    """The whole picture in the middle of `size`, in its own proportions; its edges drawn out over what stays free."""
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
    """The original (RGB), with what was made of the part `box` of it laid over where the grey mask is white."""
    left, upper, right, lower = box
    over = Image.new("RGBA", original.size)
    over.paste(_fill(made, (lower - upper, right - left)), (left, upper))
    kept = Image.new("RGBa", original.size)  # premultiplied: grey places of the mask mix without a dark seam
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    whole = over.convert("RGB").convert("RGBA")
    whole.alpha_composite(kept.convert("RGBA"))
    return whole.convert("RGB")


def _fill(image: Image.Image, size: Size) -> Image.Image:
    """The middle of the picture, in its own proportions, over the whole of `size`."""
    height, width = size
    wider = width / height > image.width / image.height
    outer_width = width if wider else image.width * height // image.height
    outer_height = image.height * width // image.width if wider else height
    filled = Image.new("RGB", (width, height))
    outer = resize(image, (outer_height, outer_width))
    filled.paste(outer, (width // 2 - outer_width // 2, height // 2 - outer_height // 2))
    return filled
