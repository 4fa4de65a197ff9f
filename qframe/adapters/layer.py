"""The update of one layer, apart from files and networks."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


def as_float32(value: float) -> float:
    """The nearest number that a float32 tensor holds."""
    return float(torch.tensor(value, dtype=torch.float32))


@attrs.frozen(eq=False)
class LoraLayer:
    """The update of one linear layer: scale * up @ down, scale = alpha / rank.

    down: [rank, in]. up: [out, rank]. alpha: rounded to float32, which every file format holds exactly.
    magnitude: [out], the lengths of rows that DoRA learns (arXiv 2402.09353, eq. 5); None without DoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float = attrs.field(converter=as_float32)
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it, but for alpha, by part: down, up, and magnitude with DoRA."""
        own = {"down": self.down, "up": self.up}
        return own if self.magnitude is None else {**own, "magnitude": self.magnitude}

    def equals(self, other: LoraLayer) -> bool:
        """Whether every part is the same, to the bit; devices do not count."""
        mine, theirs = self.tensors, other.tensors
        return (
            self.alpha == other.alpha
            and mine.keys() == theirs.keys()
            and all(t.dtype == theirs[p].dtype and torch.equal(t.cpu(), theirs[p].cpu()) for p, t in mine.items())
        )

    def update(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What the layer adds to its `weight` [out, in], in float32.

        With DoRA `strength` scales the direction alone, as peft and diffusers do it: the magnitudes count whole.
        """
        base = weight.float()
        low_rank = strength * self.alpha / self.rank * (self.up.to(base) @ self.down.to(base))
        if self.magnitude is None:
            return low_rank
        moved = base + low_rank
        lengths = torch.linalg.vector_norm(moved, dim=1)  # [out]
        update: Tensor = (self.magnitude.to(base) / lengths)[:, None] * moved - base
        return update
