"""Assigns values to the prompts of a request, and to the pictures that are made of each prompt."""

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
    """Return the number of pictures that a request makes."""
    return request.prompt_count * request.num_images_per_prompt


def broadcast(values: Sequence[T], count: int, name: str) -> tuple[T, ...]:
    """Return one value for each of `count` prompts: `values` if there are as many, or their only value repeated.

    Raises:
        ConfigError: There are neither 1 nor `count` values; the message calls them `name`.
    """
    if len(values) not in (1, count):
        raise ConfigError(f"{name}: {len(values)} given for {count} prompts", "Give one for all, or one per prompt.")
    return tuple(values) * count if len(values) == 1 else tuple(values)


def repeat_each(values: Sequence[T], times: int) -> list[T]:
    """Repeat the value of each prompt for each of its `times` pictures: a, b becomes a, a, b, b for two pictures."""
    return [value for value in values for _ in range(times)]


def select(request: R, prompts: Sequence[int]) -> R:
    """Return a request for some prompts of a request alone.

    The negative prompts, embeddings, generators and latents that belong to these prompts are kept with them. A single
    generator is shared with the original request.

    Args:
        request: The request.
        prompts: The places of the prompts to keep, counted from 0.
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
