"""Rotary positions of pictures and text, as tables of unit complex numbers that rotate queries and keys.

The arithmetic is that of diffusers' QwenEmbedRope (transformer_qwenimage.py). Positions have three axes: frame, row and
column. Rows and columns are counted from the middle of a picture. Text lies on the diagonal, where all three numbers
are equal, and begins after the largest half side of the pictures of its sample. Position tables are kept on the device
while there is room for them (`TableCache`). They have at most MOST_ROWS rows; `make_layout` refuses a sample that needs
more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qframe.diffusion.copies import sent
from qframe.diffusion.tables import TableCache
from qframe.interfaces import Grid

Axes = tuple[int, int, int]
"""How many of a head's channels are rotated by the frame, the row and the column (`axes_dims_rope` of the model)."""

_THETA = 10000  # QwenImageTransformer2DModel.__init__ in diffusers' transformer_qwenimage.py
_ROWS = 4096  # the smallest table of text positions
MOST_ROWS = 2**20
"""The most rows of a position table, which are the tokens of a picture of 16384 x 16384 pixels.

A table of so many rows takes 512 MiB if a head has 128 channels, as in the published models.
"""
_pictures = TableCache()
_texts = TableCache()


def picture_table(grid: Grid, frame: int, axes: Axes, device: torch.device) -> Tensor:
    """Return the position table of a picture, [f h w, sum(axes) / 2] complex64. Its first frame has number `frame`."""
    return _pictures.get((grid, frame, axes, device), lambda: _make_picture_table(grid, frame, axes, device))


def _make_picture_table(grid: Grid, frame: int, axes: Axes, device: torch.device) -> Tensor:
    frames, height, width = grid
    counted = (
        torch.arange(frame, frame + frames),
        torch.arange(height) - (height - height // 2),
        torch.arange(width) - (width - width // 2),
    )
    turned = [_turns(positions, channels) for positions, channels in zip(counted, axes, strict=True)]
    along = [
        turn.reshape([-1 if place == axis else 1 for place in range(3)] + [turn.shape[-1]]).expand(*grid, -1)
        for axis, turn in enumerate(turned)
    ]
    return sent(torch.cat(along, dim=-1).reshape(frames * height * width, -1), device)


def text_table(start: int, length: int, axes: Axes, device: torch.device) -> Tensor:
    """Return the position table of text from position `start` on, [length, sum(axes) / 2] complex64. It is a view."""
    rows = _ROWS
    while rows < start + length:
        rows *= 2
    return _diagonal(rows, axes, device)[start : start + length]


def sample_pictures(grids: Sequence[Grid], axes: Axes, device: torch.device, *, layered: bool = False) -> list[Tensor]:
    """Return the position table of each picture of a sample.

    Picture i begins at frame i; if `layered`, the last at -1.
    """
    frames = list(range(len(grids)))
    if layered:
        frames[-1] = -1
    return [picture_table(grid, frame, axes, device) for grid, frame in zip(grids, frames, strict=True)]


def text_start(grids: Sequence[Grid], *, layered: bool = False) -> int:
    """Return the first position of a sample's text: the largest half side of its pictures.

    If `layered`, it is at least the number of pictures minus 1, so that it comes after all layers.
    """
    sides = max(max(height // 2, width // 2) for _, height, width in grids)
    return max(sides, len(grids) - 1) if layered else sides


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate heads [N, H, d] by `turns` [N, 1, d / 2, 2].

    Pairs of channels are complex numbers; computed in float32.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers fuse products of real numbers, and not those of complex ones
        (real, imaginary), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


def _diagonal(rows: int, axes: Axes, device: torch.device) -> Tensor:
    return _texts.get((rows, axes, device), lambda: _make_diagonal(rows, axes, device))


def _make_diagonal(rows: int, axes: Axes, device: torch.device) -> Tensor:
    return sent(torch.cat([_turns(torch.arange(rows), channels) for channels in axes], dim=-1), device)


def _turns(positions: Tensor, channels: int) -> Tensor:
    """Return exp(i p theta^(-2k / channels)), [n, channels / 2] (RoFormer, arXiv 2104.09864, section 3.2.2)."""
    # 1 / pow, not pow(-x): at position 4096 the last bit of a frequency is worth 2e-4 of angle.
    frequencies = 1.0 / torch.pow(_THETA, torch.arange(0, channels, 2).float() / channels)
    angles = torch.outer(positions.float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)
