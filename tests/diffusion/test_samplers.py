from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from qframe.diffusion.samplers import EulerSampler, HeunSampler
from qframe.interfaces import Sampler
from qframe.testing import SamplerContract


class TestEuler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return EulerSampler()


class TestHeun(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return HeunSampler()


def error(sampler: Sampler, steps: int) -> float:
    """Against the exact solution of dx/dsigma = sigma x from 1 to 0: x exp(-1/2)."""
    x = torch.ones(1, 1, dtype=torch.float64)
    end = sampler.sample(lambda tokens, sigma: sigma.double() * tokens, x, torch.linspace(1, 0, steps + 1).double())
    return abs(end.item() - math.exp(-0.5))


@pytest.mark.parametrize(("sampler", "order"), [(EulerSampler(), 1), (HeunSampler(), 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(sampler: Sampler, order: int) -> None:
    assert error(sampler, 32) / error(sampler, 64) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euler_equals_diffusers_scheduler_to_the_bit(dtype: torch.dtype) -> None:
    sigmas = torch.tensor([1.0, 0.81, 0.4, 0.02])
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    scheduler.set_begin_index(0)
    x = torch.randn(6, 4).to(dtype)
    velocities = [torch.randn(6, 4).to(dtype) for _ in range(4)]
    wanted = x
    for timestep, velocity in zip(scheduler.timesteps, velocities, strict=True):
        wanted = scheduler.step(velocity, timestep, wanted, return_dict=False)[0]
    given = iter(velocities)
    found = EulerSampler().sample(lambda tokens, sigma: next(given), x, scheduler.sigmas)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("sampler", "calls"), [(EulerSampler(), 4), (HeunSampler(), 7)])
def test_velocities_asked_in_four_steps(sampler: Sampler, calls: int) -> None:
    """Heun's last step has sigma 0 at its end, where it asks nothing."""
    asked: list[Tensor] = []

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return tokens

    sampler.sample(velocity, torch.randn(2, 2), torch.tensor([1.0, 0.6, 0.3, 0.1, 0.0]))
    assert len(asked) == calls
    assert all(sigma > 0 for sigma in asked)
