from __future__ import annotations

import math

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from qframe.diffusion.flow import (
    add_noise,
    draw_noise,
    logit_normal_density,
    low_sigma_ramp,
    shift_sigma,
    uniform_density,
    velocity_target,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sigma_zero_is_data_and_one_is_noise() -> None:
    clean, noise = torch.randn(2, 5, 3)
    sigma = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.25])
    noisy = add_noise(clean, noise, sigma)
    assert torch.equal(noisy[[0, 2]], clean[[0, 2]])
    assert torch.equal(noisy[[1, 3]], noise[[1, 3]])
    torch.testing.assert_close(noisy[4], 0.75 * clean[4] + 0.25 * noise[4])


def test_one_sigma_serves_all() -> None:
    clean, noise = torch.randn(2, 5, 3)
    assert torch.equal(add_noise(clean, noise, torch.tensor(0.3)), add_noise(clean, noise, torch.full((5,), 0.3)))


def test_the_target_is_the_derivative_of_the_path() -> None:
    clean, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    sigma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.functional.jacobian(lambda s: add_noise(clean, noise, s), sigma)
    torch.testing.assert_close(derivative, velocity_target(clean, noise))


@pytest.mark.parametrize("many", [False, True])
def test_noise_is_drawn_as_diffusers_draws_it(many: bool) -> None:
    shape = (3, 4, 2, 6)
    ours, theirs = ([seeded(i) for i in range(3)] if many else seeded() for _ in range(2))
    assert torch.equal(draw_noise(shape, ours), randn_tensor(shape, generator=theirs, dtype=torch.float32))


def test_noise_in_bfloat16_is_drawn_as_diffusers_draws_it() -> None:
    wanted = randn_tensor((2, 3, 4), generator=seeded(), dtype=torch.bfloat16)
    assert torch.equal(draw_noise((2, 3, 4), seeded(), dtype=torch.bfloat16), wanted)


def test_each_sample_of_several_generators_is_its_own() -> None:
    batch = draw_noise((2, 3, 4), [seeded(5), seeded(6)])
    assert torch.equal(batch[1:], draw_noise((1, 3, 4), [seeded(6)]))


def test_too_few_generators_are_refused() -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        draw_noise((3, 1), [seeded(), seeded()])


@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.5, 0.9])
def test_the_shift_equals_diffusers(mu: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigma = torch.linspace(0.01, 1, 40)
    wanted = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(mu, 1.0, sigma)
    torch.testing.assert_close(shift_sigma(sigma, mu), wanted)


def test_the_shift_keeps_its_ends_and_its_order() -> None:
    shifted = shift_sigma(torch.linspace(0, 1, 50), 0.9)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted.diff() > 0).all()


def test_densities_lie_within_the_open_range() -> None:
    for sigma in (uniform_density(20_000, seeded()), logit_normal_density(20_000, seeded(), std=4.0)):
        assert sigma.min() > 0
        assert sigma.max() < 1


def test_densities_have_their_moments() -> None:
    uniform = uniform_density(20_000, seeded())
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.005)
    logits = logit_normal_density(20_000, seeded(), mean=0.5, std=1.5).logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(1.5, abs=0.05)


def test_the_ramp_is_one_from_its_floor_on() -> None:
    weights = low_sigma_ramp(torch.tensor([0.0, 0.15, 0.3, 0.9]), 0.3)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.25, 1.0, 1.0]))
    assert math.isclose(low_sigma_ramp(torch.tensor(0.03), 0.3).item(), 0.01, rel_tol=1e-5)
