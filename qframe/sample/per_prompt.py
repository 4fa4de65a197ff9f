"""How values are laid out over the prompts of a request and over the pictures made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import attrs
from torch import Tensor

from qframe.errors import ConfigError
from qframe.interfaces import Request

T = TypeVar("T")
R = TypeVar("R", bound=Request)


def picture_count(request: Request) -> int:
    """How many pictures a request makes."""
    return request.prompt_count * request.num_images_per_prompt


def broadcast(values: Sequence[T], count: int, name: str) -> tuple[T, ...]:
    """One value per prompt: `values` as they are if there are `count`, or their only value `count` times.

    Raises:
        ConfigError: There is another number of values; the message calls them `name`.
    """
    if len(values) not in (1, count):
        raise ConfigError(f"{name}: {len(values)} given for {count} prompts", "Give one for all, or one per prompt.")
    return tuple(values) * count if len(values) == 1 else tuple(values)


def repeat_each(values: Sequence[T], times: int) -> list[T]:
    """One value per picture made, from one value per prompt: a, b becomes a, a, b, b for two pictures per prompt."""
    return [value for value in values for _ in range(times)]


def select(request: R, prompts: Sequence[int]) -> R:
    """The part of a request that makes the pictures of some of its prompts, given by their places.

    Negative prompts, embeddings, generators and latents go with their prompts; a single generator is shared.
    """
    times = request.num_images_per_prompt
    places = [prompt * times + i for prompt in prompts for i in range(times)]
    negative = request.negative_prompt
    if negative is not None:
        negative = tuple(broadcast(negative, request.prompt_count, "negative_prompt")[i] for i in prompts)
    generator = request.generator
    return attrs.evolve(
        request,
        prompt=None if request.prompt is None else tuple(request.prompt[i] for i in prompts),
        negative_prompt=negative,
        prompt_embeds=_rows(request.prompt_embeds, prompts, request.prompt_count),
        prompt_embeds_mask=_rows(request.prompt_embeds_mask, prompts, request.prompt_count),
        negative_prompt_embeds=_rows(request.negative_prompt_embeds, prompts, request.prompt_count),
        negative_prompt_embeds_mask=_rows(request.negative_prompt_embeds_mask, prompts, request.prompt_count),
        generator=[generator[i] for i in places] if isinstance(generator, Sequence) else generator,
        latents=request.latents[places] if request.latents is not None else None,
    )


def _rows(values: Tensor | None, rows: Sequence[int], count: int) -> Tensor | None:
    """Those rows of a tensor that has one row for each of `count` prompts; a tensor with one row for all stays."""
    return values if values is None or values.shape[0] != count else values[list(rows)]
