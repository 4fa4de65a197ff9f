"""Optimizers, schedules and the average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qframe.schema import TrainConfig
from qframe.train.optim import Optimizers, WeightAverage, schedule_factor
from tests.train.conftest import ToyNetwork


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 0.25),
        ("constant", 3, 1.0),
        ("constant", 99, 1.0),
        ("linear", 4, 1.0),
        ("linear", 52, 0.5),
        ("cosine", 4, 1.0),
        ("cosine", 52, 0.5),
        ("cosine", 100, 0.0),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, step: int, factor: float) -> None:
    config = TrainConfig(lr_schedule=schedule, warmup_steps=4, max_steps=100)  # type: ignore[arg-type]
    assert schedule_factor(config, step) == pytest.approx(factor)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    network = ToyNetwork()
    named = dict(network.named_parameters())
    optimizers = Optimizers(named, TrainConfig(optimizer="muon"), "blocks")
    muon, adamw = optimizers.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert taken == {id(p) for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert taken | rest == {id(p) for p in named.values()}


def test_a_step_uses_the_rate_of_its_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    config = TrainConfig(learning_rate=0.1, weight_decay=0.0, warmup_steps=10)
    optimizers = Optimizers({"w": weight}, config, "blocks")
    weight.grad = torch.ones(3)
    assert optimizers.step(4) == pytest.approx(0.05)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.95))  # Adam's first step is the rate itself


def test_the_average_forgets_early_weights_and_follows_late_ones() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage({"w": weight}, 0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update({"w": weight}, 0)
    assert average.values["w"].item() == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0)
    for step in range(100, 200):
        average.update({"w": weight}, step)
    assert average.values["w"].item() == pytest.approx(1.0, abs=1e-4)
    assert weight.item() == 1.0
