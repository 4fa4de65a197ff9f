"""Values that hold the tokens of a whole batch, one sample after another, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs
import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""Frames, height and width of one picture, counted in tokens."""


def grid_length(grid: Grid) -> int:
    """Return how many tokens a picture of this grid has."""
    return grid[0] * grid[1] * grid[2]


def shapes_of(value: Tensor | Mapping[str, Tensor] | Sequence[Tensor] | None) -> str:
    """Describe tensors by shape, dtype and device, for the `repr` of a value that holds them."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{list(value.shape)} {dtype}" + ("" if value.device.type == "cpu" else f" {value.device}")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shapes_of(inner)}' for name, inner in value.items())}}}"
    return "None" if value is None else f"({', '.join(map(shapes_of, value))})"


@attrs.frozen(eq=False)
class PackedSequence:
    """Image tokens of a batch, one sample after another, without padding.

    Attributes:
        tokens: The tokens of all samples, [N, C].
        grids: For each sample, the grids of its pictures in order.

    Raises:
        ValueError: The grids do not add up to N tokens. The message names both numbers.
    """

    tokens: Tensor = attrs.field(repr=shapes_of)
    grids: tuple[tuple[Grid, ...], ...]

    def __attrs_post_init__(self) -> None:
        if self.tokens.ndim != 2:
            raise ValueError(f"packed tokens are [N, C], got shape {tuple(self.tokens.shape)}")
        for index, grids in enumerate(self.grids):
            for grid in grids:
                if len(grid) != 3 or min(grid) < 1:
                    raise ValueError(f"sample {index}: a grid is three positive integers, got {grid}")
        if sum(self.lengths) != self.tokens.shape[0]:
            raise ValueError(f"grids add up to {sum(self.lengths)} tokens, the tensor holds {self.tokens.shape[0]}")

    @property
    def batch_size(self) -> int:
        """B, the number of samples."""
        return len(self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each sample has."""
        return tuple(sum(grid_length(g) for g in grids) for grids in self.grids)

    def with_tokens(self, tokens: Tensor) -> PackedSequence:
        """Return a sequence with other tokens [N, C] and the same grids."""
        return attrs.evolve(self, tokens=tokens)


def _read_only(extras: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return MappingProxyType(dict(extras))


@attrs.frozen(eq=False)
class Conditioning:
    """The encoded prompts of a batch, one sample after another, without padding.

    Attributes:
        embeds: The text tokens of all samples, [M, D].
        lengths: How many text tokens each sample has; they add up to M.
        extras: Further values that the encoder gives for each token, [M, ...], by name.

    Raises:
        ValueError: Lengths and tensors disagree. The message names both numbers.
    """

    embeds: Tensor = attrs.field(repr=shapes_of)
    lengths: tuple[int, ...]
    extras: Mapping[str, Tensor] = attrs.field(factory=dict, converter=_read_only, repr=shapes_of)

    def __attrs_post_init__(self) -> None:
        if self.embeds.ndim != 2:
            raise ValueError(f"conditioning embeds are [M, D], got shape {tuple(self.embeds.shape)}")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"each sample needs at least one text token, got lengths {self.lengths}")
        if sum(self.lengths) != self.embeds.shape[0]:
            raise ValueError(f"lengths add up to {sum(self.lengths)} tokens, embeds hold {self.embeds.shape[0]}")
        for name, extra in self.extras.items():
            if extra.shape[0] != self.embeds.shape[0]:
                raise ValueError(f"extra {name!r} has {extra.shape[0]} rows, embeds hold {self.embeds.shape[0]}")

    @property
    def batch_size(self) -> int:
        """B, the number of samples."""
        return len(self.lengths)

    def split(self) -> tuple[Conditioning, ...]:
        """Return one Conditioning per sample. Their tensors are views of this one's: nothing is copied."""
        embeds = self.embeds.split(list(self.lengths))
        extras = {name: extra.split(list(self.lengths)) for name, extra in self.extras.items()}
        return tuple(
            Conditioning(embeds[i], (length,), {name: parts[i] for name, parts in extras.items()})
            for i, length in enumerate(self.lengths)
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Move embeds and extras to a device, and cast the embeds alone, as extras may be integers."""
        extras = {name: extra.to(device) for name, extra in self.extras.items()}
        return Conditioning(self.embeds.to(device=device, dtype=dtype), self.lengths, extras)

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Join the samples of `parts` into one batch. Raises ValueError if the names of their extras differ."""
        names = {frozenset(part.extras) for part in parts}
        if len(names) != 1:
            raise ValueError(f"cannot join conditionings with different extras: {sorted(map(sorted, names))}")
        return Conditioning(
            torch.cat([part.embeds for part in parts]),
            tuple(length for part in parts for length in part.lengths),
            {name: torch.cat([part.extras[name] for part in parts]) for name in next(iter(names))},
        )
