"""`qframe bench transformer`: contestants do the same work, and what is printed is what was measured."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qframe.interfaces import grid_length
from qframe_bench.measuring import Measured
from qframe_bench.transformer import contestants, profiled, tables
from qframe_bench.transformer.command import transformer
from qframe_bench.transformer.settings import Settings

TINY = Settings(
    s=(2,),
    width=64,
    head=32,
    layers=1,
    text_width=24,
    repeats=1,
    device="cpu",
    dtype="float32",
    gradient_checkpointing=False,
    profile=False,
)
OPTIONS = ["--s", "2", "--width", "64", "--head", "32", "--layers", "1", "--text-width", "24", "--repeats", "1"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    outcome = CliRunner().invoke(transformer, [*OPTIONS, "--profile", "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_every_promise_is_measured_with_both_kinds_of_prompts(report: dict[str, Any]) -> None:
    assert [(one["s"], one["text"]) for one in report["comparisons"]] == [(2, "77"), (2, "mixed")]
    promised = {ratio["name"]: ratio["most"] for ratio in report["comparisons"][0]["ratios"]}
    assert promised == {
        "time, packed / two uniform groups": 1.05,
        "time, packed / padded and masked": 0.75,
        "memory, packed / two uniform groups": 1.0,
        "memory, packed / groups accumulated one by one": None,
        "memory, packed / padded and masked": None,
        "time, uniform batch / diffusers": 1.0,
        "memory, uniform batch / diffusers": 1.0,
    }
    for one in report["comparisons"]:
        assert all(ratio["value"] > 0 for ratio in one["ratios"])
        assert all(measured["peak_bytes"] > 0 for measured in one["contestants"].values())


def test_more_and_more_shapes_are_measured(report: dict[str, Any]) -> None:
    assert [row["shapes"] for row in report["flatness"]] == [1, 2, 4, 8, 16]
    assert report["flatness"][0]["time"] == {"name": "time", "value": 1.0, "most": 1.1}


def test_tables_say_the_same() -> None:
    outcome = CliRunner().invoke(transformer, OPTIONS, catch_exceptions=False)
    assert outcome.stdout.count("at most 1.05") == 2
    assert outcome.stdout.count("MiB") == 10 + 10
    assert "TFLOP" not in outcome.stdout


def test_ratios_are_those_of_the_contestants() -> None:
    values = {
        "packed": (1, 4),
        "groups": (2, 8),
        "groups, accumulated": (2, 5),
        "padded": (4, 2),
        "uniform": (3, 3),
        "uniform, diffusers": (2, 4),
    }
    found = {name: Measured(turns=(s,), peak_bytes=b) for name, (s, b) in values.items()}
    assert [ratio.value for ratio in tables.ratios(found)] == [0.5, 0.25, 0.5, 0.8, 2.0, 1.5, 0.75]
    assert [ratio.kept for ratio in tables.ratios(found)] == [True, True, True, True, True, False, True]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_more_shapes_are_of_as_many_tokens(count: int) -> None:
    shapes = tables.shapes_of(8, count)
    assert len(shapes) == 16
    assert len(set(shapes)) == len({grid_length(grid) for (grid,) in shapes}) == count
    assert sum(grid_length(grid) for (grid,) in shapes) == 16 * 64


def gradient(stock: Any, run: partial[None]) -> torch.Tensor:
    trained = [parameter for parameter in stock.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
        torch.nn.init.constant_(parameter, 0.1)
    run()
    return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_contestants_give_their_lora_the_same_gradient(checkpointing: bool) -> None:
    """Both do a whole backward pass over the same layers; a batch of one shape is one diffusers can run."""
    stock, own = contestants.networks(attrs.evolve(TINY, gradient_checkpointing=checkpointing))
    batch = contestants.random_batch(TINY, [((1, 2, 2), (1, 3, 3))] * 2, [5, 4])
    packed = gradient(stock, partial(contestants.run_packed, own, batch))
    assert packed.norm() > 0
    for run in (
        partial(contestants.run_groups, stock, batch.by_shape()),
        partial(contestants.run_padded, stock, batch),
    ):
        torch.testing.assert_close(gradient(stock, run), packed, rtol=1e-4, atol=1e-6 * float(packed.norm()))


def test_groups_accumulate_the_gradient_that_they_have_together() -> None:
    stock, _ = contestants.networks(TINY)
    groups = contestants.random_batch(TINY, tables.seeds(2), (3, 1, 4, 1)).by_shape()
    together, apart, first = (
        gradient(stock, run)
        for run in (
            partial(contestants.run_groups, stock, groups),
            partial(contestants.run_groups_apart, stock, groups),
            partial(contestants.run_groups_apart, stock, groups[:1]),
        )
    )
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-6 * float(together.norm()))
    assert (first - together).norm() > 0.1 * together.norm()


def test_groups_are_of_one_shape_and_lose_nothing() -> None:
    batch = contestants.random_batch(TINY, tables.seeds(2), (3, 1, 4, 1))
    groups = batch.by_shape()
    assert [len(set(group.grids)) for group in groups] == [1, 1]
    assert torch.equal(torch.cat([group.tokens for group in groups]), batch.tokens)
    assert [group.text_lengths for group in groups] == [(3, 1), (4, 1)]


def test_operations_are_counted_without_computing_them() -> None:
    """As many as the counter sees in a real pass, and as many forward as paper and pencil give."""
    grids, texts = tables.seeds(2), (7, 3, 5, 2)
    _, own = contestants.networks(TINY)
    batch = contestants.random_batch(TINY, grids, texts)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        contestants.run_packed(own, batch)
    assert profiled.operations(TINY, grids, texts) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        own.packed(batch.tokens, batch.text, torch.rand(4), grids=grids, text_lengths=texts)
    width, rows, words, samples, rank = 64, sum(batch.lengths), sum(texts), 4, 16
    per_token = 4 * width * (width + 2 * rank) + 2 * width * 4 * width  # q, k, v, out with LoRA; two linear layers
    products = (rows + words) * per_token
    products += sum((length + text) ** 2 * width * 2 for length, text in zip(batch.lengths, texts, strict=True))
    products += samples * (256 * width + width * width + 2 * 6 * width * width + 2 * width * width)  # time, modulation
    products += rows * 2 * contestants.CHANNELS * width + words * 24 * width  # in and out
    assert counter.get_total_flops() == 2 * products


def test_the_profile_adds_up(report: dict[str, Any]) -> None:
    found = report["profile"]
    assert found["operations"] == profiled.operations(TINY, tables.seeds(2), (77,) * 4)
    assert set(found["components"]) == {"attention", "linear layers", "copies", "norms, modulation, rotation"}
    assert all(seconds > 0 for seconds in found["components"].values())
    text = profiled.Profile(operations=2 * 10**12, seconds=4.0, ceiling=1e12, components={"a": 3.0, "b": 1.0}).as_text()
    assert "2.000 TFLOP in 4.000 s: 0.500 TFLOP/s, 50% of the 1.000" in text
    assert text.splitlines()[-2].split() == ["a", "3.000", "s", "75%"]


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("aten::addmm", "linear layers"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("nvjet_tst_128x256", "linear layers"),
        ("void flash_bwd_dq_dk_dv_loop_kernel", "attention"),
        ("aten::bmm", "attention"),
        ("aten::copy_", "copies"),
        ("aten::native_layer_norm", "norms, modulation, rotation"),
    ],
)
def test_components_by_name(name: str, component: str) -> None:
    assert profiled.component_of(name) == component


def test_quick_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """E21; and the published size is that of the published configuration."""
    asked: list[Settings] = []
    monkeypatch.setattr(tables, "run", lambda settings, tell: asked.append(settings))
    monkeypatch.setattr(tables, "as_text", lambda report: "")
    for flag in ("--quick", "--full"):
        assert CliRunner().invoke(transformer, [flag], catch_exceptions=False).exit_code == 0
    quick, full = asked
    assert (quick.s, quick.width, quick.layers) == ((8,), 128, 1)
    assert (full.width, full.head, full.layers, full.text_width) == (3072, 128, 60, 3584)
