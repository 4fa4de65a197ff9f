"""The contract of a schedule: the noise levels that a model was made for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from qframe.interfaces.loadable import Loadable


class Schedule(Loadable):
    """Which noise levels a checkpoint was made for.

    Apart from the Sampler, because published checkpoints carry a schedule of their own, whatever integrates it.
    """

    @abstractmethod
    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        """[steps + 1] float32, descending, ending in 0, for a target of `tokens` tokens.

        custom: unshifted sigmas of the user's own; then `steps` is their number.
        """

    @abstractmethod
    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        """Sigmas in (0, 1) moved as this schedule moves them for `tokens` tokens; training densities use it."""
