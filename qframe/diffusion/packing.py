"""Converts latents to tokens and back, and packed sequences to padded ones and back.

A packed sequence [N, C] holds the tokens of all samples one after another; a padded one [B, L, C] has a row for each
sample, filled up to the longest. Nothing else in the core changes these layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qframe.interfaces import Grid, PackedSequence


def pack_latents(latents: Tensor, patch: int) -> Tensor:
    """Cut latents [B, Z, h, w] into tokens [B, (h/p)(w/p), Z p p], where p is `patch`.

    Tokens are ordered by row, then column. Within a token the channel is the slowest index, then the row and the
    column in the patch. For p = 2 this equals `QwenImagePipeline._pack_latents` of diffusers.

    Raises:
        ValueError: A side of the latents is no multiple of p.
    """
    batch, channels, height, width = latents.shape
    if height % patch or width % patch:
        raise ValueError(f"latents of {height} x {width} cannot be cut into patches of {patch} x {patch}")
    cut = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpack_latents(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """Put tokens [B, L, Z p p], where p is `patch`, together to latents [B, Z, h, w]: the inverse of `pack_latents`.

    Args:
        tokens: The tokens of pictures that all have the same grid.
        grid: Frames (must be 1), rows and columns of tokens.
        patch: The side of a patch in latent pixels.

    Raises:
        ValueError: The grid has several frames, or another number of tokens.
    """
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
    """Return the grid (1 frame, rows, columns) of the tokens that latents [..., h, w] are cut into."""
    return (1, latents.shape[-2] // patch, latents.shape[-1] // patch)


def pack_pictures(samples: Sequence[Sequence[Tensor]], patch: int) -> PackedSequence:
    """Pack the pictures of several samples into one sequence.

    Args:
        samples: For each sample the latents [Z, h, w] of its pictures, which may have different sizes.
        patch: The side of a patch in latent pixels.
    """
    rows = [pack_latents(latents[None], patch)[0] for latents_of in samples for latents in latents_of]
    grids = tuple(tuple(latent_grid(latents, patch) for latents in latents_of) for latents_of in samples)
    return PackedSequence(torch.cat(rows), grids)


def unpack_pictures(sequence: PackedSequence, patch: int) -> list[list[Tensor]]:
    """Return, for each sample of a sequence, the latents [Z, h, w] of its pictures: the inverse of `pack_pictures`."""
    parts = iter(sequence.tokens.split([rows * columns for grids in sequence.grids for _, rows, columns in grids]))
    return [[unpack_latents(next(parts)[None], grid, patch)[0] for grid in grids] for grids in sequence.grids]


def pad(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Pad packed tokens [N, C] with zeros to [B, L, C], and make the mask [B, L] that is True where tokens are.

    If all samples have the same length, the mask is None, because attention kernels are faster without one, and the
    padded tokens are a view of the packed ones.

    Args:
        tokens: The tokens of all samples, one sample after another.
        lengths: The number of tokens of each sample.
    """
    longest = max(lengths)
    if all(length == longest for length in lengths):
        return tokens.reshape(len(lengths), longest, tokens.shape[-1]), None
    # Not `padded[mask] = tokens`: for that, the host waits until the GPU has counted what the mask keeps.
    padded = torch.nn.utils.rnn.pad_sequence(list(tokens.split(list(lengths))), batch_first=True)
    places = torch.arange(longest, device=tokens.device)
    return padded, torch.stack([places < length for length in lengths])


def unpad(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """Pack padded tokens [B, L, C] to [N, C], where sample i has `lengths[i]` tokens. The padding is dropped."""
    if all(length == padded.shape[1] for length in lengths):
        return padded.reshape(-1, padded.shape[-1])
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])


def interleave(first: PackedSequence, second: PackedSequence) -> PackedSequence:
    """Join two sequences that have the same samples: each sample gets its tokens in `first`, then those in `second`."""
    a = first.tokens.split(list(first.lengths))
    b = second.tokens.split(list(second.lengths))
    tokens = torch.cat([part for pair in zip(a, b, strict=True) for part in pair])
    return PackedSequence(tokens, tuple(g + h for g, h in zip(first.grids, second.grids, strict=True)))


def per_token(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Repeat values [B, ...], one per sample, to [N, ...], one per token; sample i has `lengths[i]` tokens."""
    return values.repeat_interleave(torch.tensor(lengths, device=values.device), dim=0, output_size=sum(lengths))
