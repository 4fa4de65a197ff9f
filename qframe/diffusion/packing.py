"""Latents to tokens and back, packed to padded and back. Nothing else in the core changes the layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qframe.interfaces import Grid, PackedSequence


def pack_latents(latents: Tensor, patch: int) -> Tensor:
    """Cut latents [B, Z, h, w] into tokens [B, (h/p)(w/p), Z p p], where p is `patch`.

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
    """Pack the latents [Z, h, w] of every sample's pictures, which may have any sizes, into one sequence."""
    rows = [pack_latents(latents[None], patch)[0] for latents_of in samples for latents in latents_of]
    grids = tuple(tuple(latent_grid(latents, patch) for latents in latents_of) for latents_of in samples)
    return PackedSequence(torch.cat(rows), grids)


def unpack_pictures(sequence: PackedSequence, patch: int) -> list[list[Tensor]]:
    """The inverse of `pack_pictures`: for each sample the latents [Z, h, w] of its pictures."""
    parts = iter(sequence.tokens.split([rows * columns for grids in sequence.grids for _, rows, columns in grids]))
    return [[unpack_latents(next(parts)[None], grid, patch)[0] for grid in grids] for grids in sequence.grids]


def pad(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Pad packed tokens [N, C] with zeros to [B, L, C], and make the mask [B, L] that is True where tokens are.

    If all samples have the same length, the mask is None, since attention kernels are faster without one, and the
    padded tokens are a view of the packed ones. `lengths` has the tokens of each sample.
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
    """Join two sequences of the same samples: of each sample the tokens of `first`, then those of `second`."""
    a = first.tokens.split(list(first.lengths))
    b = second.tokens.split(list(second.lengths))
    tokens = torch.cat([part for pair in zip(a, b, strict=True) for part in pair])
    return PackedSequence(tokens, tuple(g + h for g, h in zip(first.grids, second.grids, strict=True)))


def per_token(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Repeat the value of each sample, [B, ...], for each of its tokens: [N, ...]. `lengths` counts the tokens."""
    return values.repeat_interleave(torch.tensor(lengths, device=values.device), dim=0, output_size=sum(lengths))
