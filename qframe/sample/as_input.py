"""Gives results exactly the pixels of their input pictures: sampled in their proportions, and resized when decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from qframe.errors import ConfigError
from qframe.interfaces import Parts, Recipe, Request, Settled
from qframe.pictures.geometry import Size
from qframe.sample.jobs.asked import own_fields
from qframe.sample.per_prompt import broadcast
from qframe.sample.request_pictures import load_picture


def settle_as_input(recipe: Recipe, request: Request, parts: Parts) -> tuple[Settled, ...]:
    """Settle a checked request whose results get exactly the pixels of their inputs (`Request.as_input`).

    Where the recipe does not follow the proportions of the input by itself, the size that is sampled is as large as the
    one that the recipe chooses, in the proportions of the input.

    Args:
        recipe: The recipe of the family.
        request: The request, with the family's defaults filled in.
        parts: The components, which say what sizes must be multiples of.

    Raises:
        ConfigError: The request has no input picture, or names a size, or has inputs of several proportions that the
            recipe does not follow.
    """
    if (request.height, request.width) != (None, None):
        raise ConfigError("as_input: height and width are given too", "Leave them out, or leave as_input out.")
    exact = input_sizes(request)
    settled = recipe.settle(request, parts)
    times = request.num_images_per_prompt
    pairs = [(one.size, exact[place // times]) for one in settled for place in one.places]
    if not all(_in_proportion(size, wanted, parts.multiple) for size, wanted in pairs):
        if len(set(exact)) > 1:
            raise ConfigError(
                f"as_input: the inputs have several sizes, {sorted(set(exact))}, and this family samples one at a time",
                "Call once for each size.",
            )
        height, width = _sides(settled[0].size, exact[0], parts.multiple)
        settled = recipe.settle(attrs.evolve(request, height=height, width=width), parts)
    return tuple(attrs.evolve(one, exact=tuple(exact[place // times] for place in one.places)) for one in settled)


def input_sizes(request: Request) -> list[Size]:
    """Return height and width of the input picture of each prompt; of several references the first one counts.

    Raises:
        ConfigError: The request has no picture.
        DataError: A picture cannot be used.
    """
    fields = [one for one in own_fields(type(request)) if one.kind == "picture" and not one.grey]
    field = next((one for one in fields if getattr(request, one.name)), None)
    if field is None:
        raise ConfigError("as_input: the request has no input picture", "Give an image, or a height and a width.")
    values = [
        value[0] if field.nested else value for value in getattr(request, field.name) if not field.nested or value
    ]
    pictures = [load_picture(value, field.key) for value in values]
    sizes: Sequence[Size] = [(picture.height, picture.width) for picture in pictures]
    return list(broadcast(sizes, max(request.prompt_count, 1), field.key))


def _in_proportion(size: Size, wanted: Size, multiple: int) -> bool:
    """Whether a size has the proportions of another one, but for rounding its sides to a multiple."""
    (height, width), (rows, columns) = size, wanted
    return abs(height - width * rows / columns) <= multiple or abs(width - height * columns / rows) <= multiple


def _sides(size: Size, wanted: Size, multiple: int) -> Size:
    """Return sides in the proportions of `wanted`, with about as many pixels as `size`, as multiples."""
    scale = math.sqrt(size[0] * size[1] / (wanted[0] * wanted[1]))
    height, width = (max(round(side * scale / multiple), 1) * multiple for side in wanted)
    return height, width


def resized(picture: Tensor, size: Size) -> Tensor:
    """Resize a decoded picture [3, H, W] in [-1, 1] to a size; one that has the size is returned as it is."""
    if tuple(picture.shape[-2:]) == size:
        return picture
    larger = torch.nn.functional.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)
    return larger[0].clamp(-1, 1).to(picture.dtype)
