"""The contract of a sampler: it integrates a velocity from the first noise level to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from qframe.interfaces.plan import AfterStep, Velocity

OnStep = Callable[[int], bool]
"""Called after every step with its number; returns True to stop sampling there."""


class Sampler(ABC):
    """Integrates a velocity from the first sigma to the last."""

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
        """Tokens [N, C] at sigmas[-1], from tokens x [N, C] at sigmas[0]; sigmas [S + 1] float32, descending.

        After step i (to sigmas[i + 1]) tokens pass through `after_step(tokens, i)`; then `on_step(i)` may stop.
        """
