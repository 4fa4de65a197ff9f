"""Rotary positions of pictures and text, as unit complex numbers: what queries and keys are turned by.

The arithmetic of diffusers' QwenEmbedRope (transformer_qwenimage.py): three axes (frame, row, column), rows and columns
counted from the middle of a picture, text on the diagonal after the largest half side of its sample. Tables are kept
per grid, and grow as they are asked to, up to MOST_ROWS (`make_layout` refuses a sample that needs more).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from qframe.interfaces import Grid

Axes = tuple[int, int, int]
"""How many of a head's channels turn with the frame, the row and the column (`axes_dims_rope` of the configuration)."""

_THETA = 10000  # QwenImageTransformer2DModel.__init__ in diffusers' transformer_qwenimage.py
_ROWS = 4096  # text positions a table starts with
MOST_ROWS = 2**20
"""The most rows of a table: 512 MiB at the published size, as many as a picture of 16384 x 16384 pixels has tokens."""


@functools.lru_cache(maxsize=128)
def picture_table(grid: Grid, frame: int, axes: Axes, device: torch.device) -> Tensor:
    """[f h w, sum(axes) / 2] complex64, of a picture whose frames are numbered from `frame` on."""
    frames, height, width = grid
    counted = (
        torch.arange(frame, frame + frames),
        torch.arange(height) - (height - height // 2),
        torch.arange(width) - (width - width // 2),
    )
    with torch.inference_mode(False):  # a table made while sampling may serve training later
        turned = [_turns(positions, channels) for positions, channels in zip(counted, axes, strict=True)]
        along = [
            turn.reshape([-1 if place == axis else 1 for place in range(3)] + [turn.shape[-1]]).expand(*grid, -1)
            for axis, turn in enumerate(turned)
        ]
        return torch.cat(along, dim=-1).reshape(frames * height * width, -1).to(device)


def text_table(start: int, length: int, axes: Axes, device: torch.device) -> Tensor:
    """[length, sum(axes) / 2] complex64, of text at positions `start` and on: a view of a longer table."""
    rows = _ROWS
    while rows < start + length:
        rows *= 2
    return _diagonal(rows, axes, device)[start : start + length]


def sample_pictures(grids: Sequence[Grid], axes: Axes, device: torch.device, *, layered: bool = False) -> list[Tensor]:
    """The tables of one sample's pictures: picture i begins at frame i. layered: the last one lies at frame -1."""
    frames = list(range(len(grids)))
    if layered:
        frames[-1] = -1
    return [picture_table(grid, frame, axes, device) for grid, frame in zip(grids, frames, strict=True)]


def text_start(grids: Sequence[Grid], *, layered: bool = False) -> int:
    """The first position of a sample's text: the largest half side of its pictures (`layered`: or its last layer)."""
    sides = max(max(height // 2, width // 2) for _, height, width in grids)
    return max(sides, len(grids) - 1) if layered else sides


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate heads [N, H, d] by `turns` [N, 1, d / 2, 2] in float32, pairs of channels being complex numbers."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers fuse real products, and leave complex ones alone
        (real, imaginary), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _diagonal(rows: int, axes: Axes, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.cat([_turns(torch.arange(rows), channels) for channels in axes], dim=-1).to(device)


def _turns(positions: Tensor, channels: int) -> Tensor:
    """[n, channels / 2]: exp(i p theta^(-2k / channels)), Su et al., RoFormer (arXiv 2104.09864), section 3.2.2."""
    # 1 / pow, not pow(-x): at position 4096 the last bit of a frequency is worth 2e-4 of angle.
    frequencies = 1.0 / torch.pow(_THETA, torch.arange(0, channels, 2).float() / channels)
    angles = torch.outer(positions.float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)
