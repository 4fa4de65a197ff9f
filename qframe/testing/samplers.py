"""The contract tests that every sampler must pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qframe.interfaces import Sampler


class _Reads(TorchDispatchMode):
    """Counts how often the program reads the value of a tensor, as it does to decide an `if`."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return op(*args, **(kwargs or {}))


class SamplerContract:
    """The contract tests that every sampler must pass.

    A subclass defines one pytest fixture: `sampler`.

    Attributes:
        sigmas: The noise levels of the runs that the tests make, descending from 1 to 0.
    """

    sigmas: Tensor = torch.tensor([1.0, 0.7, 0.3, 0.02, 0.0])

    def test_integrates_a_constant_velocity_exactly(self, sampler: Sampler) -> None:
        x, v = torch.randn(5, 3), torch.randn(5, 3)
        end = sampler.sample(lambda tokens, sigma: v, x, self.sigmas)
        torch.testing.assert_close(end, x - v)

    def test_one_step_is_finite(self, sampler: Sampler) -> None:
        end = sampler.sample(lambda tokens, sigma: tokens, torch.randn(5, 3), torch.tensor([1.0, 0.0]))
        assert end.isfinite().all()

    def test_more_steps_come_closer(self, sampler: Sampler) -> None:
        """The exact solution of dx/dsigma = x from sigma 1 to 0 is x / e; more steps must come closer to it."""
        x = torch.ones(1, 1, dtype=torch.float64)
        errors = [
            abs(sampler.sample(lambda tokens, sigma: tokens, x, torch.linspace(1, 0, steps + 1)).item() - 1 / math.e)
            for steps in (4, 8, 16)
        ]
        assert errors[0] > errors[1] > errors[2]

    def test_velocity_is_asked_at_scalar_sigmas_between_the_ends(self, sampler: Sampler) -> None:
        asked: list[Tensor] = []

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            asked.append(sigma)
            return tokens

        sampler.sample(velocity, torch.randn(5, 3), self.sigmas)
        assert all(sigma.ndim == 0 and 0 <= sigma <= 1 for sigma in asked)

    def test_after_step_sees_every_step_and_decides_what_follows(self, sampler: Sampler) -> None:
        seen: list[int] = []

        def after_step(tokens: Tensor, step: int) -> Tensor:
            seen.append(step)
            return torch.full_like(tokens, step)

        end = sampler.sample(lambda tokens, sigma: tokens, torch.randn(5, 3), self.sigmas, after_step=after_step)
        steps = len(self.sigmas) - 1
        assert seen == list(range(steps))
        assert (end == steps - 1).all()

    def test_no_step_waits_for_the_device(self, sampler: Sampler) -> None:
        """Values of tensors may be read before the first step, and not in every step."""
        reads = []
        for steps in (4, 8):
            with _Reads() as counted:
                sampler.sample(lambda tokens, sigma: tokens, torch.randn(5, 3), torch.linspace(1, 0, steps + 1))
            reads.append(counted.count)
        assert reads[0] == reads[1]

    def test_on_step_stops(self, sampler: Sampler) -> None:
        seen: list[int] = []

        def on_step(step: int) -> bool:
            seen.append(step)
            return step == 1

        sampler.sample(lambda tokens, sigma: tokens, torch.randn(5, 3), self.sigmas, on_step=on_step)
        assert seen == [0, 1]

    def test_keeps_dtype_and_leaves_its_arguments_alone(self, sampler: Sampler) -> None:
        x = torch.randn(5, 3, dtype=torch.bfloat16)
        before, sigmas = x.clone(), self.sigmas.clone()
        end = sampler.sample(lambda tokens, sigma: tokens, x, sigmas)
        assert end.dtype == torch.bfloat16
        assert torch.equal(x, before)
        assert torch.equal(sigmas, self.sigmas)
