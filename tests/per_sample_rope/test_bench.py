"""The benchmark program runs, and says what it compares."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

from qframe_qwen_per_sample_rope import bench


def test_benchmark_prints_ratios() -> None:
    size = ["--size", "2", "--width", "64", "--layers", "1", "--repeats", "1"]
    outcome = CliRunner().invoke(bench.main, size, catch_exceptions=False)
    ratios = [float(found) for found in re.findall(r"(?:diffusers|mask) +([0-9.]+)$", outcome.output, re.MULTILINE)]
    assert len(ratios) == 6
    assert all(ratio > 0 for ratio in ratios)


def test_contestants_give_their_lora_a_gradient() -> None:
    """Both sides do a whole backward pass over the same layers."""
    stock, own = bench.networks(64, 1, torch.device("cpu"), torch.float32)
    grids = (((1, 2, 2),) * 2, ((1, 2, 2),) * 2)
    batch = bench.Batch(torch.randn(16, 64), torch.randn(9, 64), grids, (5, 4))
    trained = [parameter for parameter in stock.parameters() if parameter.requires_grad]
    gradients = []
    for run in (lambda: bench.run_packed(own, batch), lambda: bench.run_stock(stock, batch)):
        for parameter in trained:
            parameter.grad = None
            torch.nn.init.constant_(parameter, 0.1)
        run()
        gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * float(gradients[0].norm()))


def test_the_median_is_taken_after_a_first_turn() -> None:
    calls: list[str] = []
    found = bench.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, torch.device("cpu"))
    assert calls == ["a", "b"] * 4
    assert found.keys() == {"a", "b"}
    assert found == pytest.approx({"a": 0.0, "b": 0.0}, abs=0.1)
