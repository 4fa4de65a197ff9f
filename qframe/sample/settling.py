"""Settles requests without weights: fills in defaults, checks values, opens pictures, and decides sizes.

Every caller calls `settle`: the pipeline, the rehearsal of a command line, validation while training and `qframe
verify` all call it, once per request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import attrs
from PIL import Image

from qframe.errors import ConfigError, PluginError
from qframe.interfaces import Parts, PictureSets, Plan, Recipe, Request, Settled, as_request, grid_length
from qframe.pictures.channels import with_channels
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import LIMIT_PIXELS
from qframe.sample.as_input import settle_as_input
from qframe.sample.conditioning import forward_options, prompt_limit
from qframe.sample.latents import target_grid
from qframe.sample.per_prompt import broadcast, select
from qframe.sample.request_checks import check_request, guidance_of
from qframe.sample.request_pictures import one_size

T = TypeVar("T")
R = TypeVar("R", bound=Request)


def filled(recipe: Recipe, request: R) -> R:
    """Return a copy of a request in which the family's defaults replace the values that the request leaves open.

    Raises:
        PluginError: The recipe declares no defaults.
    """
    if not hasattr(recipe, "sampling"):
        raise PluginError(
            f"recipe {type(recipe).__qualname__} does not say what it samples with by default",
            "It sets `sampling`: see qframe.interfaces.SamplingDefaults.",
        )
    return recipe.sampling.fill(request)


def settle(recipe: Recipe, request: Request, parts: Parts) -> tuple[Settled, ...]:
    """Fill in, check, open and size a request. Runs no network, and each picture is decoded once.

    Args:
        recipe: The recipe of the family.
        request: A request of the recipe's `request_type`.
        parts: The components; none needs to be loaded. Prompts are checked if the encoder is there.

    Returns:
        One value per size that the results have. Their places cover the result once.

    Raises:
        ConfigError: The request cannot be met.
        DataError: A picture or a prompt cannot be used.
    """
    complete = filled(recipe, request)
    check_request(complete, recipe.sampling, parts)
    if complete.as_input:
        return settle_as_input(recipe, complete, parts)
    return recipe.settle(complete, parts)


def plan_request(recipe: Recipe, request: Request, parts: Parts) -> Plan:
    """Settle a request whose results all have one size, and make its plan.

    Raises:
        ConfigError: The results have several sizes, or `settle` refuses the request.
    """
    settled = settle(recipe, request, parts)
    one_size([one.size for one in settled])
    return recipe.plan(settled[0], parts)


# -- what recipes settle with -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class SizedPart:
    """A part of a request: those of its prompts whose results have one size.

    Attributes:
        prompts: The places of these prompts among all prompts.
        places: The places of their pictures in the result.
        size: Height and width of these pictures in pixels.
        request: The request for these prompts alone.
    """

    prompts: tuple[int, ...]
    places: tuple[int, ...]
    size: Size
    request: Request

    def of(self, values: Sequence[T]) -> tuple[T, ...]:
        """Pick the values of this part's prompts.

        Args:
            values: One value per prompt of the whole request. An empty sequence, or one value for all prompts, is
                returned unchanged.
        """
        return tuple(values) if len(values) < 2 else tuple(values[prompt] for prompt in self.prompts)


def split_by_size(request: Request, sizes: Sequence[Size], parts: Parts) -> list[SizedPart]:
    """Split a request into parts whose results have one size each, in the order in which the sizes first occur.

    Args:
        request: The whole request.
        sizes: Height and width of the results in pixels, one for all prompts or one per prompt.
        parts: The components, which say what sizes must be multiples of.

    Raises:
        ConfigError: A size cannot be made, or the request gives latents, which have one size, for several sizes.
    """
    times, count = request.num_images_per_prompt, request.prompt_count
    alike: dict[Size, list[int]] = defaultdict(list)
    for prompt, size in enumerate(sizes):
        alike[check_size(size, parts.multiple)].append(prompt)
    if len(alike) == 1:
        return [SizedPart(tuple(range(count)), tuple(range(count * times)), sizes[0], request)]
    if request.latents is not None:
        raise ConfigError(
            f"latents are of one size, and the pictures lead to outputs of several: {sorted(alike)}",
            "Name height and width, or call once per size.",
        )
    return [
        SizedPart(
            tuple(prompts),
            tuple(prompt * times + i for prompt in prompts for i in range(times)),
            size,
            select(request, prompts),
        )
        for size, prompts in alike.items()
    ]


def check_size(size: Size, multiple: int) -> Size:
    """Check a size (height, width in pixels), and return it.

    Raises:
        ConfigError: A side is no positive multiple of `multiple`; the message names the nearest ones. Or the picture
            would have too many pixels.
    """
    for name, side in zip(("height", "width"), size, strict=True):
        if side < multiple or side % multiple:
            below = side // multiple * multiple
            near = f"{below} and {below + multiple}" if below > 0 else f"{multiple}"
            raise ConfigError(f"{name} must be a multiple of {multiple} pixels, got {side}", f"The nearest: {near}.")
    if size[0] * size[1] > LIMIT_PIXELS:
        raise ConfigError(
            f"height {size[0]} and width {size[1]} make more than {LIMIT_PIXELS:,} pixels", "Ask for less."
        )
    return size


def settle_part(
    part: SizedPart,
    parts: Parts,
    *,
    shown: Sequence[Sequence[Image.Image]] = (),
    references: Sequence[Sequence[Image.Image]] = (),
) -> Settled:
    """Make the `Settled` of one part of a request, for a recipe that is not a transform.

    Args:
        part: The part, as `split_by_size` made it.
        parts: The components, which decide token grid and noise levels.
        shown: The pictures that the encoder sees, resized already: one set for all prompts of the request, one set per
            prompt, or () for none.
        references: The pictures that the codec encodes for the denoiser, resized already, in the same form.
    """
    request = part.request
    grid = target_grid(request, part.size, parts)
    assert request.num_inference_steps is not None  # `filled`
    opaque = [[with_channels(image, 3) for image in one] for one in part.of(shown)]
    seen = _sets(broadcast(opaque or [()], request.prompt_count, "image"))
    return Settled(
        places=part.places,
        request=request,
        size=part.size,
        grid=grid,
        sigmas=parts.schedule.sigmas(request.num_inference_steps, grid_length(grid), request.sigmas),
        shown=seen,
        references=_sets(part.of(references)),
        guidance=guidance_of(request),
        prompt_tokens=prompt_limit(request, seen),
        forward=forward_options(request, parts),
    )


def settle_inner(inner: Recipe, part: SizedPart, parts: Parts, **changes: Any) -> Settled:
    """Have the inner recipe of a transform settle one part of a request, at the size of the part.

    Args:
        inner: The inner recipe.
        part: The part, as `split_by_size` made it.
        parts: The components.
        changes: Fields of the request with which the inner recipe gets another value, for example its pictures, opened.
            A field that the request does not have is left out.
    """
    height, width = part.size
    request = as_request(type(part.request), part.request, height=height, width=width, **changes)
    (settled,) = inner.settle(request, parts)
    return attrs.evolve(settled, places=part.places)


def _sets(values: Sequence[Sequence[Image.Image]]) -> PictureSets:
    return tuple(tuple(one) for one in values)
