"""What one step does with random numbers and with the averaged weights, as nothing but its results can show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from qframe.interfaces import Example
from qframe.train.batch import make_batch
from qframe.train.loop import run_steps
from tests.train.conftest import PATCH, FixedShares, HalvingSchedule, toy_example
from tests.train.test_loop import BASE, Scene


@pytest.fixture
def scene(tmp_path: Path, mixed_examples: list[Example]) -> Callable[..., Scene]:
    return lambda config, dropout=0.0: Scene(tmp_path / "run", mixed_examples, config, dropout)


def test_the_average_follows_the_weights_that_a_step_ends_with(scene: Callable[..., Scene]) -> None:
    """Recomputed from the weights seen after every step: the average of a step contains that step's update."""
    run = scene(attrs.evolve(BASE, ema_decay=0.9, max_steps=4, learning_rate=0.05))
    wanted = {name: p.detach().double().clone() for name, p in run.state.parameters.items()}
    seen: list[int] = []

    def observe(step: int, metrics: object) -> None:
        decay = min(0.9, step / (9 + step))  # (1 + s) / (10 + s) with steps counted from 0
        assert run.state.average is not None
        for name, parameter in run.state.parameters.items():
            wanted[name].lerp_(parameter.detach().double(), 1 - decay)
            torch.testing.assert_close(run.state.average.values[name].double(), wanted[name], rtol=1e-5, atol=1e-7)
        seen.append(step)

    start = run.weights()
    run_steps(attrs.evolve(run.setup, observe=observe), run.state)
    assert seen == [1, 2, 3, 4]
    assert any(not torch.equal(start[name], value) for name, value in run.weights().items() if "average" in name)


def test_every_pass_of_every_step_drops_other_inputs(scene: Callable[..., Scene]) -> None:
    """The same example in every pass: what is dropped depends on the seed, the step and the pass, and on no state."""

    def masks() -> list[Tensor]:
        run = scene(attrs.evolve(BASE, batch_size=1, gradient_accumulation=2, max_steps=3), dropout=0.5)
        found: list[Tensor] = []
        dropout = run.setup.denoiser.module.text.lora_dropout["default"]
        dropout.register_forward_hook(lambda _, given, made: found.append(made == 0))
        run_steps(attrs.evolve(run.setup, order=FixedShares([[5]] * 6), save=lambda: None), run.state)
        return found

    first, again = masks(), masks()
    assert len(first) == 6
    assert all(mask.any() and not mask.all() for mask in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i in range(6) for j in range(i))


def test_every_step_and_every_slot_draws_other_noise_and_another_sigma() -> None:
    example = toy_example(0)

    def drawn(step: int, slot: int) -> tuple[Tensor, float]:
        config = attrs.evolve(BASE, timestep_density="uniform")
        batch = make_batch(
            [example],
            [slot],
            step=step,
            config=config,
            schedule=HalvingSchedule(),
            patch=PATCH,
        )
        return batch.noisy.tokens, batch.sigma.item()

    found = [drawn(step, slot) for step in range(3) for slot in range(2)]
    assert len({sigma for _, sigma in found}) == 6
    assert torch.equal(found[0][0], drawn(0, 0)[0])
    assert not any(torch.equal(found[i][0], found[j][0]) for i in range(6) for j in range(i))
