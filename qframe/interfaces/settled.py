"""A request that is ready to be planned: opened, sized and checked, before any network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.interfaces.plan import ForwardOptions
from qframe.interfaces.request import Request
from qframe.interfaces.sequences import Grid
from qframe.pictures.geometry import Size

PictureSets = tuple[tuple[Image.Image, ...], ...]
"""Sets of pictures: one set for all prompts, or one set per prompt. A set may be empty."""


@attrs.frozen(eq=False, kw_only=True)
class Settled:
    """A settled request: all that is known, before weights are loaded, of a request whose results have one size.

    If the results of a request have several sizes, there is one `Settled` for the prompts of each size.
    `Recipe.settle` makes these values once per request, and `Recipe.plan` turns each into a plan. A recipe that must
    keep more subclasses this class.

    Attributes:
        places: Where the pictures belong in the result of the whole request, counted from 0.
        request: The request for these pictures alone. Every field that the family has a default for is filled in.
        size: Height and width of the results in pixels.
        grid: The results as a grid of tokens.
        sigmas: Noise levels [S + 1], float32, falling to 0.
        shown: Per prompt the pictures that the encoder sees, at the size at which it sees them.
        references: The pictures that the denoiser gets as references, at the size at which the codec encodes them.
        guidance: Scale of classifier-free guidance; None where the positive prompt runs alone.
        prompt_tokens: Tokens kept of a prompt; None keeps all.
        forward: What the request sets for every forward pass of the denoiser.
        exact: Height and width that each result is resized to after it was decoded; empty where that is `size`.
    """

    places: tuple[int, ...]
    request: Request
    size: Size
    grid: Grid
    sigmas: Tensor
    shown: PictureSets
    references: PictureSets = ()
    guidance: float | None = None
    prompt_tokens: int | None = None
    forward: ForwardOptions
    exact: tuple[Size, ...] = ()

    @property
    def steps(self) -> int:
        """The number of sampling steps, before a strength leaves some of them out."""
        return self.sigmas.shape[0] - 1

    def with_generator(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> Self:
        """Return a copy whose request has another source of random numbers."""
        return attrs.evolve(self, request=attrs.evolve(self.request, generator=generator))

    def seeded(self, seed: int) -> Self:
        """Return a copy with a generator for each picture; the one at place i of the result is seeded with seed + i."""
        return self.with_generator([torch.Generator().manual_seed(seed + place) for place in self.places])


@attrs.frozen(eq=False, kw_only=True)
class SettledAround(Settled):
    """What a transform settled of a request: the inner recipe's `Settled`, and the fields that a subclass adds.

    Attributes:
        inner: The `Settled` that the inner recipe returned. The transform passes it to the inner recipe's `plan`.
    """

    inner: Settled

    @classmethod
    def of(cls, inner: Settled, **own: Any) -> Self:
        """Make an instance around the inner recipe's `Settled`, whose fields are copied.

        Args:
            inner: What the inner recipe settled.
            own: Values of the fields that the subclass adds.
        """
        common = {field.name: getattr(inner, field.name) for field in attrs.fields(Settled)}
        return cls(**common, inner=inner, **own)

    def with_generator(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> Self:
        changed = super().with_generator(generator)
        return attrs.evolve(changed, inner=self.inner.with_generator(generator))
