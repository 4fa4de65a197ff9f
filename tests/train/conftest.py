"""A denoiser that is small enough to check by hand, and training examples for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from qframe.cache.lengths import Shape
from qframe.diffusion.packing import per_token
from qframe.interfaces import PLAIN, Conditioning, Denoiser, Example, ForwardOptions, PackedSequence, Schedule
from qframe.train.order import BatchOrder, BatchPortion

CHANNELS, PATCH, WIDTH = 4, 2, 6


class ToyNetwork(nn.Module):
    """Computes a token from its value and from the prompt, the references and the sigma of its sample."""

    def __init__(self) -> None:
        super().__init__()
        tokens = CHANNELS * PATCH * PATCH
        self.blocks = nn.ModuleList([nn.Linear(tokens, tokens) for _ in range(2)])
        self.text = nn.Linear(WIDTH, tokens)
        self.sigma = nn.Linear(1, tokens)

    def forward(self, x: Tensor, text: Tensor, references: Tensor, sigma: Tensor) -> Tensor:
        hidden = x + self.text(text) + self.sigma(sigma[:, None]) + references
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return hidden


class ToyDenoiser(Denoiser):
    """A denoiser that is right for any mixture of shapes, since a token depends only on its own sample."""

    blocks: ClassVar[str] = "blocks"
    lora_presets: ClassVar[dict[str, tuple[str, ...]]] = {"default": ("text",), "all": ("text", "sigma")}

    def __init__(self) -> None:
        self.module = ToyNetwork()

    @classmethod
    def describe(cls, model: Any, options: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def load(cls, model: Any, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        raise NotImplementedError

    @classmethod
    def ingredients(cls, model: Any, options: Any) -> dict[str, str]:
        raise NotImplementedError

    def save(self, folder: Path, saved_as: Any = None) -> None:
        raise NotImplementedError

    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        text = torch.stack([part.embeds.mean(0) for part in cond.split()])
        given = torch.zeros(x.batch_size, x.tokens.shape[1])
        if references is not None:
            rows = references.tokens.split(list(references.lengths))
            given = torch.stack([row.mean(0) if len(row) else given[0] for row in rows])
        result: Tensor = self.module(
            x.tokens, per_token(text, x.lengths), per_token(given, x.lengths), per_token(sigma, x.lengths)
        )
        return result


class HalvingSchedule(Schedule):
    """A schedule that halves every sigma, so that a test can see whether it was used."""

    @classmethod
    def describe(cls, model: Any, options: Any) -> None:
        return None

    @classmethod
    def load(cls, model: Any, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        return cls()

    @classmethod
    def ingredients(cls, model: Any, options: Any) -> dict[str, str]:
        return {}

    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        return sigma / 2


def toy_example(index: int, *, height: int = 4, width: int = 4, references: int = 1, words: int = 3) -> Example:
    generator = torch.Generator().manual_seed(index)
    return Example(
        id=f"example-{index}",
        target=torch.randn(CHANNELS, height, width, generator=generator),
        references=tuple(torch.randn(CHANNELS, 4, 2 + 2 * i, generator=generator) for i in range(references)),
        conditioning=Conditioning(torch.randn(words, WIDTH, generator=generator), (words,)),
        unconditional=Conditioning(torch.zeros(2, WIDTH), (2,)),
    )


class SizedList(list[tuple[Shape, int]]):
    """A list of the shapes and text lengths of examples, with the methods that a cache has for them."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> SizedList:
        return cls(
            (
                ((e.target.shape[1], e.target.shape[2]), tuple((r.shape[1], r.shape[2]) for r in e.references)),
                e.conditioning.lengths[0],
            )
            for e in examples
        )

    def shape(self, index: int) -> Shape:
        return self[index][0]

    def text_length(self, index: int) -> int:
        return self[index][1]


class FixedShares(BatchOrder):
    """Batches that the test chooses; one process computes each of them alone."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self._batches = batches

    def batch(self, number: int, rank: int = 0, world: int = 1) -> BatchPortion:
        indices = tuple(self._batches[number])
        return BatchPortion(indices, tuple(range(len(indices))), len(indices))

    def first_batch(self, epoch: int, world: int = 1) -> int:
        return epoch * len(self._batches)


@pytest.fixture
def mixed_examples() -> list[Example]:
    """Six examples of different sizes, reference counts and prompt lengths."""
    sizes = [(4, 4), (8, 4), (4, 8), (6, 6), (2, 2), (4, 4)]
    return [toy_example(i, height=h, width=w, references=i % 3, words=1 + i) for i, (h, w) in enumerate(sizes)]


@pytest.fixture
def toy_denoiser() -> ToyDenoiser:
    torch.manual_seed(0)
    return ToyDenoiser()


@pytest.fixture
def schedule() -> HalvingSchedule:
    return HalvingSchedule()
