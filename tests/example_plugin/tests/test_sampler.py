"""Run by `pytest tests` in this folder, once the plugin is installed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from qframe_example.options import AdamsBashforthOptions
from qframe_example.sampler import AdamsBashforthSampler

from qframe.interfaces import Sampler
from qframe.testing import SamplerContract


class TestAdamsBashforth(SamplerContract):
    @pytest.fixture(params=[1, 2])
    def sampler(self, request: pytest.FixtureRequest) -> Sampler:
        return AdamsBashforthSampler(AdamsBashforthOptions(order=request.param))


@pytest.mark.parametrize("order", [1, 2])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(order: int) -> None:
    """dx/dsigma = x from 1 to 0, on steps of unequal size."""
    sampler = AdamsBashforthSampler(AdamsBashforthOptions(order=order))
    errors = []
    for steps in (16, 32, 64):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 1.5
        end = sampler.sample(lambda x, sigma: x, torch.ones(1, 1), sigmas)
        errors.append(abs(end.item() - 1 / math.e))
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert all(ratio == pytest.approx(2**order, rel=0.25) for ratio in ratios), ratios
