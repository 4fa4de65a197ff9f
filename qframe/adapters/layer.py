"""The update that a LoRA makes to one linear layer: its matrices, and how they change the layer's weight."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


def as_float32(value: float) -> float:
    """Round a number to the nearest number that float32 can represent."""
    return float(torch.tensor(value, dtype=torch.float32))


@attrs.frozen(eq=False)
class LoraLayer:
    """The update that a LoRA makes to one linear layer: alpha / rank * up @ down is added to the layer's weight.

    With DoRA, each row of the sum is then scaled to the length that `magnitude` has for the row.

    Attributes:
        down: The matrix [rank, in], which is applied first.
        up: The matrix [out, rank], which is applied second.
        alpha: The update is multiplied by alpha / rank. Alpha is rounded to float32, which every file format can hold.
        magnitude: The lengths [out] of the weight's rows that DoRA learns (arXiv 2402.09353, eq. 5); None for a LoRA
            without DoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float = attrs.field(converter=as_float32)
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the update: the number of rows of `down`."""
        return int(self.down.shape[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The update's tensors by name: "down", "up", and for a DoRA "magnitude"."""
        own = {"down": self.down, "up": self.up}
        return own if self.magnitude is None else {**own, "magnitude": self.magnitude}

    def equals(self, other: LoraLayer) -> bool:
        """Whether another update has the same alpha, the same dtypes and exactly the same values, on any device."""
        mine, theirs = self.tensors, other.tensors
        return (
            self.alpha == other.alpha
            and mine.keys() == theirs.keys()
            and all(t.dtype == theirs[p].dtype and torch.equal(t.cpu(), theirs[p].cpu()) for p, t in mine.items())
        )

    def update(self, weight: Tensor, scale: float = 1.0) -> Tensor:
        """Compute the matrix [out, in] in float32 that must be added to the layer's weight to apply the LoRA.

        Args:
            weight: The layer's weight [out, in] without any LoRA.
            scale: The factor by which up @ down is multiplied further. With DoRA the magnitudes are not
                multiplied by it, as in peft and diffusers.
        """
        base = weight.float()
        low_rank = scale * self.alpha / self.rank * (self.up.to(base) @ self.down.to(base))
        if self.magnitude is None:
            return low_rank
        moved = base + low_rank
        lengths = torch.linalg.vector_norm(moved, dim=1)  # [out]
        update: Tensor = (self.magnitude.to(base) / lengths)[:, None] * moved - base
        return update
