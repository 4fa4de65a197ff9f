"""Image to image: a run that starts from a picture, noised as far as `strength` says."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qframe.compose.mixing import as_request
from qframe.errors import ConfigError
from qframe.interfaces import Parts, Plan, PlanTransform, Recipe, Request
from qframe.pictures.pixels import resize
from qframe.sample.request_pictures import (
    PictureLike,
    as_pictures,
    one_size,
    open_pictures,
    output_sizes,
    split_by_size,
)
from qframe.sample.starts import check_start, source_tokens, start_from

STRENGTH = 0.6
"""The default of diffusers' QwenImageImg2ImgPipeline."""


@attrs.frozen(eq=False, kw_only=True)
class ImageToImageRequest(Request):
    """image: the picture to start from, or one per prompt; without it a run starts from noise.

    strength: in (0, 1], which part of the steps runs; None is 0.6.
    """

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "picture to start from"}
    )
    strength: float | None = attrs.field(
        default=None, metadata={"help": f"with --image, how much is made anew, up to 1 [default: {STRENGTH}]"}
    )


class ImageToImage(PlanTransform):
    """What diffusers' QwenImageImg2ImgPipeline does, on the plans of any recipe."""

    request_type: ClassVar[type[Request]] = ImageToImageRequest
    optional: ClassVar[bool] = True

    def split(self, request: Request, recipe: Recipe) -> list[tuple[tuple[int, ...], Request]]:
        given = as_request(ImageToImageRequest, request)
        if given.image is None:
            return recipe.split(request)
        images = open_pictures(given.image, given.prompt_count)
        return split_by_size(request, output_sizes(given, images, recipe.geometry), image=images)

    def plan(self, request: Request, parts: Parts, recipe: Recipe) -> Plan:
        """ConfigError if a strength is given without an image, or pictures of several sizes: see `split`."""
        given = as_request(ImageToImageRequest, request)
        if given.image is None:
            if given.strength is not None:
                raise ConfigError("strength is given, but no image to start from", "Give image, or leave strength out.")
            return recipe.plan(request, parts)
        images = open_pictures(given.image, given.prompt_count)
        size = one_size(output_sizes(given, images, recipe.geometry))
        strength = STRENGTH if given.strength is None else given.strength
        check_start(given, size, strength, parts)
        original = source_tokens([resize(image, size) for image in images], given, parts)
        plan = recipe.plan(as_request(type(request), request, height=size[0], width=size[1]), parts)
        return start_from(plan, original, strength)
