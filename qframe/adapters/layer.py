"""A LoRA's update of one layer: the matrices, and what they add to the layer's weight."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


def as_float32(value: float) -> float:
    """Round a number to the nearest one that a float32 tensor can hold."""
    return float(torch.tensor(value, dtype=torch.float32))


@attrs.frozen(eq=False)
class LoraLayer:
    """A LoRA's update of one linear layer: alpha / rank * up @ down is added to the layer's weight.

    Attributes:
        down: [rank, in], the matrix that is applied first.
        up: [out, rank], the matrix that is applied second.
        alpha: Over the rank, it scales the update; rounded to float32, which every file format holds exactly.
        magnitude: [out], the lengths of the weight's rows that DoRA learns (arXiv 2402.09353, eq. 5); None without
            DoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float = attrs.field(converter=as_float32)
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return int(self.down.shape[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The layer's tensors by part: down, up, and magnitude if it is a DoRA."""
        own = {"down": self.down, "up": self.up}
        return own if self.magnitude is None else {**own, "magnitude": self.magnitude}

    def equals(self, other: LoraLayer) -> bool:
        """Whether another layer has the same alpha, dtypes and values, to the bit; their devices do not count."""
        mine, theirs = self.tensors, other.tensors
        return (
            self.alpha == other.alpha
            and mine.keys() == theirs.keys()
            and all(t.dtype == theirs[p].dtype and torch.equal(t.cpu(), theirs[p].cpu()) for p, t in mine.items())
        )

    def update(self, weight: Tensor, scale: float = 1.0) -> Tensor:
        """Return what is added to the weight of the layer, in float32.

        Args:
            weight: [out, in], the layer's weight without any LoRA.
            scale: The strength of the LoRA. Of a DoRA it scales the low-rank update alone, and the magnitudes stay
                as they are, as in peft and diffusers.
        """
        base = weight.float()
        low_rank = scale * self.alpha / self.rank * (self.up.to(base) @ self.down.to(base))
        if self.magnitude is None:
            return low_rank
        moved = base + low_rank
        lengths = torch.linalg.vector_norm(moved, dim=1)  # [out]
        update: Tensor = (self.magnitude.to(base) / lengths)[:, None] * moved - base
        return update
