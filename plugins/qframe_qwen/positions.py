"""The rotary positions of diffusers' Qwen-Image transformer: how many there are, and which tables are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qframe.diffusion.copies import sent
from qframe.diffusion.tables import TableCache
from qframe.errors import DataError
from qframe.interfaces import Grid

_ROTARY_ROWS = 4096  # QwenEmbedRope.__init__ in diffusers' transformer_qwenimage.py


def bound_tables(network: Any) -> None:
    """Let a network of diffusers keep the position tables of pictures up to a number of bytes.

    diffusers keeps the last 128 of them, whatever their size, on the device; for pictures of 4 MP that is 1 GB. It
    makes them of frequencies, and the CPU waits while it moves these to the device; here the CPU does not wait.
    """
    rope = getattr(network, "pos_embed", None)
    if rope is None:  # another network that reads the same model folders
        return
    tables, frequencies = TableCache(), TableCache()
    compute = type(rope)._compute_video_freqs.__wrapped__  # without diffusers' cache

    def kept(frame: int, height: int, width: int, idx: int = 0, device: torch.device | None = None) -> Tensor:
        place = (frame, height, width, idx)
        return tables.get((*place, device), lambda: compute(rope, *place, device))

    def on_device(device: torch.device) -> tuple[Tensor, Tensor]:
        return (
            frequencies.get((device, "positive"), lambda: sent(rope.pos_freqs, device)),
            frequencies.get((device, "negative"), lambda: sent(rope.neg_freqs, device)),
        )

    rope._compute_video_freqs = kept
    rope._get_device_freqs = on_device


def check_text_fits(shapes: tuple[Grid, ...], length: int) -> None:
    """Raise DataError if the model has no positions for a prompt of `length` tokens beside pictures of these grids."""
    # Text follows the pictures on the rotary axis: QwenEmbedRope.forward, max_vid_index with scale_rope.
    first = max(max(height // 2, width // 2) for _, height, width in shapes)
    if first + length > _ROTARY_ROWS:
        raise DataError(
            f"a prompt of {length} tokens is too long with pictures of {shapes}: "
            f"the model has positions for {_ROTARY_ROWS - first}",
            "Shorten the prompt.",
        )
