"""The padded form [B, L, C] of a batch: finds and checks the rows that are not padding, packs them and pads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from qframe.interfaces import Grid, grid_length
from qframe_qwen_per_sample_rope.layout import as_grid

Shapes = Sequence[Grid] | Sequence[Sequence[Grid]]


@attrs.frozen(eq=False)
class Rows:
    """The rows of a padded batch that are not padding.

    Attributes:
        mask: True for these rows, [B, L]; None where nothing is padded.
        lengths: How many of them each sample has.
    """

    mask: Tensor | None
    lengths: tuple[int, ...]

    def take(self, padded: Tensor) -> Tensor:
        """Pack these rows of padded [B, L, C] into [N, C]. The values in the padding are dropped."""
        return padded.flatten(0, 1) if self.mask is None else padded[self.mask]

    def put(self, packed: Tensor) -> Tensor:
        """Pad packed rows [N, C] to [B, L, C] with zeros."""
        if self.mask is None:
            return packed.reshape(len(self.lengths), -1, packed.shape[-1])
        padded: Tensor = packed.new_zeros(*self.mask.shape, packed.shape[-1])
        padded[self.mask] = packed
        return padded

    def positions(self) -> list[Tensor] | None:
        """Return for each sample the columns of its rows. None if the rows of every sample are its first ones."""
        if self.mask is None or all(
            bool(row[:length].all()) for row, length in zip(self.mask, self.lengths, strict=True)
        ):
            return None
        return [row.nonzero()[:, 0] for row in self.mask]


def per_sample_shapes(img_shapes: Shapes, batch: int) -> tuple[tuple[Grid, ...], ...]:
    """Return the grids of each sample.

    Args:
        img_shapes: One list of grids that all samples share, or one list of grids for each sample.
        batch: The number of samples.

    Raises:
        ValueError: `img_shapes` is neither of these, or there is not one list for each sample.
    """
    items: list[Any] = list(img_shapes)
    nested = [not isinstance(item[0], int) for item in items if len(item)]
    if not nested or any(nested) != all(nested) or len(nested) != len(items):
        raise ValueError(
            f"img_shapes is a list of (frames, height, width), shared by all samples, or a list of such lists, "
            f"one per sample; got {img_shapes!r}"
        )
    if not nested[0]:
        return (tuple(as_grid(0, item) for item in items),) * batch
    if len(items) != batch:
        raise ValueError(f"sample {min(len(items), batch)}: shapes of {len(items)} samples, tensor of {batch}")
    return tuple(tuple(as_grid(sample, grid) for grid in own) for sample, own in enumerate(items))


def image_rows(grids: Sequence[Sequence[Grid]], mask: Tensor | None, columns: int, device: torch.device) -> Rows:
    """Find the rows that hold pictures.

    Args:
        grids: The grids of each sample.
        mask: Marks the rows with pictures, [B, L], bool. Without a mask, the first rows of each sample have them.
        columns: L, the number of rows of each sample with the padding.
        device: Where the mask of the result goes, if one must be made.

    Raises:
        ValueError: Grids and rows of a sample disagree. The message names the first such sample and both numbers.
    """
    lengths = [sum(map(grid_length, own)) for own in grids]
    if mask is not None:
        for sample, (length, marked) in enumerate(zip(lengths, mask.sum(1).tolist(), strict=True)):
            if length != marked:
                raise ValueError(f"sample {sample}: its grids have {length} tokens, its mask marks {marked}")
        return _rows(mask)
    longest = max(lengths)
    if longest != columns:
        raise ValueError(
            f"sample {lengths.index(longest)}: its grids have {longest} tokens, the tensor {columns} rows per sample"
        )
    return _rows(_leading(lengths, columns, device))


def text_rows(
    batch: int, columns: int, lengths: Sequence[int] | None, masks: Sequence[Tensor], device: torch.device
) -> Rows:
    """Find the rows that hold text: those that all masks mark, among the first `lengths` of each sample.

    Args:
        batch: The number of samples.
        columns: T, the number of rows of each sample with the padding.
        lengths: How many rows of each sample have text; None does not limit them.
        masks: Any number of masks [B, T], bool.
        device: Where the mask of the result goes.

    Raises:
        ValueError: A sample has no text, or more rows than the tensor; the message names it.
    """
    if lengths is not None:
        if len(lengths) != batch:
            raise ValueError(f"sample {min(len(lengths), batch)}: {len(lengths)} text lengths, {batch} samples")
        for sample, length in enumerate(lengths):
            if not 1 <= length <= columns:
                raise ValueError(f"sample {sample}: {length} text tokens, the tensor has {columns} rows per sample")
        masks = [*masks, _leading(lengths, columns, device)]
    if not masks:
        return Rows(None, (columns,) * batch)
    found = torch.stack(list(masks)).all(0)
    for sample, count in enumerate(found.sum(1).tolist()):
        if count < 1:
            raise ValueError(f"sample {sample}: {count} text tokens, at least 1 is needed")
    return _rows(found)


def as_mask(name: str, mask: Tensor, batch: int, columns: int) -> Tensor:
    """Convert a mask of any dtype to bool.

    ValueError if it is not [batch, columns] or has values other than 0 and 1.
    """
    if mask.ndim != 2 or mask.shape[0] != batch:
        raise ValueError(f"{name} is [{batch}, {columns}], got {list(mask.shape)}: sample 0 has no row of its own")
    if mask.shape[1] != columns:
        raise ValueError(f"sample 0: its row of {name} has {mask.shape[1]} entries, the sequence has {columns}")
    found = mask != 0
    wrong = (mask != found).any(1).nonzero()
    if len(wrong):
        raise ValueError(f"sample {int(wrong[0])}: {name} marks with 1 and hides with 0; other values mean nothing")
    return found


def _leading(lengths: Sequence[int], columns: int, device: torch.device) -> Tensor:
    """Return a mask [B, columns], bool, that is True for the first `lengths` entries of each row."""
    return torch.arange(columns, device=device) < torch.tensor(lengths, device=device)[:, None]


def _rows(mask: Tensor) -> Rows:
    lengths = tuple(int(count) for count in mask.sum(1).tolist())
    return Rows(None if min(lengths) == mask.shape[1] else mask, lengths)
