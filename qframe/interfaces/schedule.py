"""The contract of a schedule: the noise levels that a model was made for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from qframe.interfaces.loadable import Loadable


class Schedule(Loadable):
    """A schedule that computes the noise levels (sigmas) of a sampling run, as the model was made for them.

    A plugin registers a subclass as a component of kind "schedule". A schedule is separate from the
    sampler, because each published model has its own schedule, and any sampler can follow it.
    """

    @abstractmethod
    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        """Return the noise levels of a sampling run, [steps + 1] float32, descending and ending in 0.

        Args:
            steps: How many steps the run has.
            tokens: How many tokens the target has.
            custom: Sigmas that the user gives in place of the schedule's. They are shifted; `steps` is their number.
        """

    @abstractmethod
    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        """Shift sigmas in (0, 1) as `sigmas` does for a target of `tokens` tokens. Training calls this method."""
