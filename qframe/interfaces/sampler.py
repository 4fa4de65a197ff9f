"""The contract of a sampler: it integrates a velocity from the first noise level to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from qframe.interfaces.plan import AfterStep, Velocity

OnStep = Callable[[int], bool]
"""Called after every step with its number; returns True to stop sampling there."""


class Sampler(ABC):
    """A sampler that integrates a velocity from the first noise level (sigma) to the last.

    A plugin registers a subclass as a component of kind "sampler". No step may read a value of a tensor, as `.item()`
    and `if sigma > 0` do, because the program would wait there for the device. Read all sigmas before the first step.
    """

    @abstractmethod
    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Integrate tokens from the first noise level to the last. Returns the tokens [N, C] at the last one.

        Args:
            velocity: Gives the velocity [N, C] of tokens [N, C] at a scalar sigma.
            x: The tokens at the first noise level, [N, C].
            sigmas: The noise levels, [S + 1] float32, descending.
            after_step: Called after step i, which ends at sigmas[i + 1], with the tokens and i. The run continues
                with the tokens that it returns.
            on_step: Called with i after that. If it returns True, the run ends there.
        """
