"""The values that pass between stages: frozen, validated where they are made, never a dict.

Symbols: B samples, N image tokens of a batch, C channels of a token, M text tokens of a batch,
D width of a text token, Z channels of a latent, h and w its sides, H and W the sides of a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import Tensor

from qframe.errors import DataError
from qframe.geometry import Geometry

Grid = tuple[int, int, int]
"""Frames, height and width of one picture, counted in tokens."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`(tokens [N, C], sigma scalar tensor) -> velocity [N, C]`: what a sampler integrates."""


def grid_length(grid: Grid) -> int:
    """How many tokens a picture of this grid has."""
    return grid[0] * grid[1] * grid[2]


@attrs.frozen(eq=False)
class PackedSequence:
    """Image tokens of a batch, one sample after another, without padding.

    tokens: [N, C]. grids: per sample, the grids of its pictures in order.
    ValueError if the grids do not add up to N, naming both numbers.
    """

    tokens: Tensor
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
        return len(self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sample."""
        return tuple(sum(grid_length(g) for g in grids) for grids in self.grids)

    @property
    def cu_seqlens(self) -> Tensor:
        """[B + 1] int32: where each sample starts, and the end."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.tokens.device)

    def with_tokens(self, tokens: Tensor) -> PackedSequence:
        """The same grids around other tokens."""
        return attrs.evolve(self, tokens=tokens)


def _read_only(extras: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return MappingProxyType(dict(extras))


@attrs.frozen(eq=False)
class Conditioning:
    """What an encoder says of each sample, one sample after another, without padding.

    embeds: [M, D]. lengths: text tokens per sample, adding up to M.
    extras: per-token side data [M, ...] of the encoder, e.g. which slots are images.
    """

    embeds: Tensor
    lengths: tuple[int, ...]
    extras: Mapping[str, Tensor] = attrs.field(factory=dict, converter=_read_only)

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
        return len(self.lengths)

    def split(self) -> tuple[Conditioning, ...]:
        """One Conditioning per sample: views, no copy."""
        embeds = self.embeds.split(list(self.lengths))
        extras = {name: extra.split(list(self.lengths)) for name, extra in self.extras.items()}
        return tuple(
            Conditioning(embeds[i], (length,), {name: parts[i] for name, parts in extras.items()})
            for i, length in enumerate(self.lengths)
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Embeds moved and cast; extras moved only (they may be integers)."""
        extras = {name: extra.to(device) for name, extra in self.extras.items()}
        return Conditioning(self.embeds.to(device=device, dtype=dtype), self.lengths, extras)

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """The samples of `parts` in one batch; all must carry the same extras."""
        names = {frozenset(part.extras) for part in parts}
        if len(names) != 1:
            raise ValueError(f"cannot join conditionings with different extras: {sorted(map(sorted, names))}")
        return Conditioning(
            torch.cat([part.embeds for part in parts]),
            tuple(length for part in parts for length in part.lengths),
            {name: torch.cat([part.extras[name] for part in parts]) for name in next(iter(names))},
        )


@attrs.frozen(eq=False)
class Picture:
    """A picture that has not been opened: its bytes, where they lie, or what reads them.

    origin: what messages call it, e.g. "train/0001.png" or "row 12, column control". A source that reads raises
    DataError.
    """

    origin: str
    source: Path | bytes | Callable[[], bytes]

    def read(self) -> bytes:
        """The encoded bytes. DataError if the file cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        if not isinstance(self.source, Path):
            return self.source()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot read picture {self.source}: {error.strerror}",
                "Check that the file exists and can be read.",
            ) from error

    def digest(self) -> str:
        """sha256 of the bytes: what a cache key holds of a picture."""
        return hashlib.sha256(self.read()).hexdigest()


@attrs.frozen(eq=False, kw_only=True)
class Record:
    """One row of a data set, before anything is opened.

    weight: an 8-bit grey picture of the target's size that says where the loss counts, and how much in
    proportion (only ratios matter); None counts every place alike. group: a name that reports sum over.
    """

    id: str
    origin: str
    prompt: str
    target: Picture
    references: tuple[Picture, ...] = ()
    weight: Picture | None = None
    group: str = ""


@attrs.frozen(eq=False)
class PixelInput:
    """A picture and the geometry it is brought into, for the codec (or as a grey weight map)."""

    picture: Picture
    geometry: Geometry


@attrs.frozen(eq=False)
class TextInput:
    """A prompt and the pictures the encoder sees with it."""

    prompt: str
    pictures: tuple[PixelInput, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class ExampleInputs:
    """What a recipe wants encoded for one record. Each part is a cache entry of its own.

    unconditional: what replaces `conditioning` when the caption is dropped (same pictures, empty prompt).
    """

    target: PixelInput
    references: tuple[PixelInput, ...] = ()
    conditioning: TextInput
    unconditional: TextInput | None = None
    weight: PixelInput | None = None


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """One encoded record, ready for training: one sample, on the CPU when it comes from the cache.

    target: [Z, h, w] normalised latents. references: each [Z, h, w], sizes of their own.
    weight: [h, w] float in [0, 1], or None.
    """

    id: str
    target: Tensor
    references: tuple[Tensor, ...] = ()
    conditioning: Conditioning
    unconditional: Conditioning | None = None
    weight: Tensor | None = None


@attrs.frozen(kw_only=True)
class ForwardOptions:
    """What a request sets for every forward pass of the denoiser, beside its inputs.

    guidance: scale that a guidance-distilled network takes as an input; None for all others. attention_kwargs: as
    diffusers' transformers take them; its "scale" scales the loaded LoRAs. cache_context: the name under which a step
    cache on the network keeps what it keeps, so that both sides of guidance never share it; None without a cache.
    """

    guidance: float | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    cache_context: str | None = None


PLAIN = ForwardOptions()
"""No options: what training and most requests use."""

Guide = Callable[[Tensor, Tensor], Tensor]
"""`(positive [N, C], negative [N, C]) -> guided velocity [N, C]`."""

AfterStep = Callable[[Tensor, int], Tensor]
"""`(tokens [N, C] after step i, i) -> tokens [N, C]`: what a recipe does between steps, e.g. blend a mask."""


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """Everything one sampling run needs, decided before its first step.

    start: noise, or noised source. sigmas: [S + 1] float32, descending, ending in 0.
    guide: combines both velocities; None runs the positive alone. uncond is required with it.
    forward: for every forward pass of both sides; its cache_context is set by the sampling loop.
    decode: final tokens [N, C] -> one picture tensor [C, H, W] in [-1, 1] per sample.
    """

    start: PackedSequence
    references: PackedSequence | None = None
    cond: Conditioning
    uncond: Conditioning | None = None
    sigmas: Tensor
    guide: Guide | None = None
    forward: ForwardOptions = PLAIN
    after_step: AfterStep | None = None
    decode: Callable[[Tensor], list[Tensor]]

    def __attrs_post_init__(self) -> None:
        if (self.guide is None) != (self.uncond is None):
            raise ValueError("a plan has both a guide and an unconditional side, or neither")
        if self.sigmas.ndim != 1 or self.sigmas.shape[0] < 2:
            raise ValueError(f"sigmas are [steps + 1] with at least one step, got {tuple(self.sigmas.shape)}")
        for name, size in (
            ("conditioning", self.cond.batch_size),
            ("unconditional", self.uncond.batch_size if self.uncond else self.start.batch_size),
            ("references", self.references.batch_size if self.references else self.start.batch_size),
        ):
            if size != self.start.batch_size:
                raise ValueError(f"{name} has {size} samples, the start has {self.start.batch_size}")


def _texts(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


@attrs.frozen(eq=False, kw_only=True)
class Request:
    """What a user asks of a sampling run; names and defaults of the diffusers pipelines.

    A recipe that takes more (a picture, a mask, a strength) subclasses this and names the class in
    `Recipe.request_type`; the command line and `pipe(...)` read the fields from there.
    latents: initial noise, dense [B, Z, h, w]. generator: one for all, or one per picture made.
    prompt_embeds: [B, T, D] with mask [B, T], instead of `prompt`, one per prompt; likewise the negative ones.
    guidance_scale: of guidance-distilled checkpoints alone. max_sequence_length: text tokens kept of a prompt that
    comes without pictures.
    """

    prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    negative_prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    prompt_embeds: Tensor | None = None
    prompt_embeds_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_embeds_mask: Tensor | None = None
    max_sequence_length: int = 512
    guidance_scale: float | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    true_cfg_scale: float = 4.0
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    sigmas: Sequence[float] | None = None
    num_images_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None

    @property
    def prompt_count(self) -> int:
        """How many prompts there are, given as text or as embeddings."""
        if self.prompt is not None:
            return len(self.prompt)
        return 0 if self.prompt_embeds is None else self.prompt_embeds.shape[0]
