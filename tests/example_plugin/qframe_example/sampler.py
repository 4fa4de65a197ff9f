"""Adams-Bashforth: the last velocity serves twice."""

from __future__ import annotations

from torch import Tensor

from qframe.interfaces import AfterStep, OnStep, Sampler, Velocity
from qframe_example.options import AdamsBashforthOptions


class AdamsBashforthSampler(Sampler):
    """Two-step Adams-Bashforth for steps of unequal size; the first step is Euler's.

    x + h (v + h / (2 h_last) (v - v_last)), from the line through both velocities (Hairer, Norsett and Wanner,
    Solving Ordinary Differential Equations I, section III.5).
    """

    def __init__(self, options: AdamsBashforthOptions) -> None:
        self.options = options

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        last: tuple[Tensor, Tensor] | None = None  # velocity and size of the step before
        for step in range(sigmas.shape[0] - 1):
            h = sigmas[step + 1] - sigmas[step]
            v = velocity(x, sigmas[step]).float()  # [N, C]
            slope = v if last is None or self.options.order == 1 else v + h / (2 * last[1]) * (v - last[0])
            x = (x.float() + h * slope).to(x.dtype)
            last = (v, h)
            if after_step is not None:
                x = after_step(x, step)
            if on_step is not None and on_step(step):
                break
        return x
