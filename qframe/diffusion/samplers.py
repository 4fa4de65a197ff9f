"""The built-in samplers, which integrate dx/dsigma = v from noise to data."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.interfaces import AfterStep, OnStep, Sampler, Velocity


def _euler_step(x: Tensor, velocity: Tensor, delta: Tensor) -> Tensor:
    # The product in the velocity's dtype, the sum in float32, then back: the order of diffusers'
    # FlowMatchEulerDiscreteScheduler.step, so that bf16 agrees to the bit.
    return (x.float() + delta * velocity).to(x.dtype)


class EulerSampler(Sampler):
    """Integrates to first order: a step computes one velocity v, and gives x + (sigma_next - sigma) v."""

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        for step in range(sigmas.shape[0] - 1):
            x = _euler_step(x, velocity(x, sigmas[step]), sigmas[step + 1] - sigmas[step])
            if after_step is not None:
                x = after_step(x, step)
            if on_step is not None and on_step(step):
                break
        return x


class HeunSampler(Sampler):
    """Integrates to second order with the mean velocity of both ends of a step (Karras et al. 2022, algorithm 1).

    A step computes two velocities. The last step computes one: the second would be that at sigma_next = 0, outside
    of the domain.
    """

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        ends = sigmas[1:].tolist()  # read once: a comparison in the loop would wait for the device in every step
        for step, end in enumerate(ends):
            delta = sigmas[step + 1] - sigmas[step]
            first = velocity(x, sigmas[step])
            guess = _euler_step(x, first, delta)
            if end > 0:
                second = velocity(guess, sigmas[step + 1])
                guess = _euler_step(x, torch.lerp(first.float(), second.float(), 0.5), delta)
            x = guess if after_step is None else after_step(guess, step)
            if on_step is not None and on_step(step):
                break
        return x
