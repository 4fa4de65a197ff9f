"""Latents to tokens and back, ragged to padded and back: the only place where the layout changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qframe.interfaces import Grid, PackedSequence


def pack_latents(latents: Tensor, patch: int) -> Tensor:
    """Latents [B, Z, h, w] as tokens [B, (h/p)(w/p), Z p p], p = `patch`.

    For p = 2 equal to diffusers' `QwenImagePipeline._pack_latents`: rows first, and within a token the
    channel before the place in the patch. ValueError if a side is no multiple of p.
    """
    batch, channels, height, width = latents.shape
    if height % patch or width % patch:
        raise ValueError(f"latents of {height} x {width} cannot be cut into patches of {patch} x {patch}")
    cut = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpack_latents(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """Tokens [B, L, Z p p] of one grid back to latents [B, Z, h, w]: the inverse of `pack_latents`."""
    frames, rows, columns = grid
    batch, length, width = tokens.shape
    if frames != 1:
        raise ValueError(f"still pictures have one frame, got grid {grid}")
    if length != rows * columns:
        raise ValueError(f"grid {grid} has {rows * columns} tokens, got {length}")
    channels = width // (patch * patch)
    cut = tokens.reshape(batch, rows, columns, channels, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * patch, columns * patch)


def latent_grid(latents: Tensor, patch: int) -> Grid:
    """The token grid of latents [..., h, w]."""
    return (1, latents.shape[-2] // patch, latents.shape[-1] // patch)


def pack_pictures(samples: Sequence[Sequence[Tensor]], patch: int) -> PackedSequence:
    """Per sample its pictures' latents [Z, h, w], of any sizes, as one packed sequence."""
    rows = [pack_latents(latents[None], patch)[0] for latents_of in samples for latents in latents_of]
    grids = tuple(tuple(latent_grid(latents, patch) for latents in latents_of) for latents_of in samples)
    return PackedSequence(torch.cat(rows), grids)


def unpack_pictures(sequence: PackedSequence, patch: int) -> list[list[Tensor]]:
    """The inverse of `pack_pictures`: per sample its pictures' latents [Z, h, w]."""
    parts = iter(sequence.tokens.split([rows * columns for grids in sequence.grids for _, rows, columns in grids]))
    return [[unpack_latents(next(parts)[None], grid, patch)[0] for grid in grids] for grids in sequence.grids]


def pad(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Packed tokens [N, C] as [B, L, C] filled with zeros, and the mask [B, L] of what is there.

    The mask is None when nothing is padded: attention kernels without a mask are faster, and then the
    padded form is a view.
    """
    longest = max(lengths)
    if all(length == longest for length in lengths):
        return tokens.reshape(len(lengths), longest, tokens.shape[-1]), None
    padded = tokens.new_zeros(len(lengths), longest, tokens.shape[-1])
    mask = torch.arange(longest, device=tokens.device) < torch.tensor(lengths, device=tokens.device)[:, None]
    padded[mask] = tokens
    return padded, mask


def unpad(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse of `pad`: [B, L, C] back to packed [N, C]; what lies in the padding is dropped."""
    if all(length == padded.shape[1] for length in lengths):
        return padded.reshape(-1, padded.shape[-1])
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])


def interleave(first: PackedSequence, second: PackedSequence) -> PackedSequence:
    """Per sample, the tokens of `first` and then those of `second`."""
    a = first.tokens.split(list(first.lengths))
    b = second.tokens.split(list(second.lengths))
    tokens = torch.cat([part for pair in zip(a, b, strict=True) for part in pair])
    return PackedSequence(tokens, tuple(g + h for g, h in zip(first.grids, second.grids, strict=True)))


def per_token(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Values [B, ...] of samples repeated over their tokens: [N, ...]."""
    return values.repeat_interleave(torch.tensor(lengths, device=values.device), dim=0, output_size=sum(lengths))
