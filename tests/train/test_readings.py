"""Metrics that are read late, and steps that the device leaves out by itself."""
# ruff: noqa: F811 (fixtures of neighbouring modules are imported, and named as arguments)

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qframe.config.schema import TrainConfig
from qframe.errors import NumericsError
from qframe.train.loop import run_steps
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.signals import Stopped
from qframe.train.state import checkpoint_folder, restore
from tests.train.test_loop import BASE, Scene, poison, scene  # noqa: F401 (a fixture)

FUSED = attrs.evolve(BASE, optimizer_options=None, ema_decay=0.9, nan_patience=100)


def fused(run: Scene) -> Scene:
    """The run with fused kernels, which a GPU has by default."""
    parameters = list(run.state.parameters.values())
    rate = run.config.learning_rate
    run.state.optimizers.parts[:] = [torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)]
    assert run.state.optimizers.skip_on_device
    return run


class ReadByTheHost(TorchDispatchMode):
    """Records every value of a tensor that Python asks for in this thread. On a GPU, each makes the CPU wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        tolist = Tensor.tolist

        def recorded(tensor: Tensor) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.found.append("tolist")
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", recorded)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.found.append("item")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [3, 5, 100])
def test_metrics_that_are_read_late_are_all_there_and_the_same(scene: Callable[..., Scene], every: int) -> None:
    each, late = scene("each"), scene("late")
    run_steps(each.setup, each.state)
    run_steps(attrs.evolve(late.setup, log_every=every), late.state)

    def exact(run: Scene) -> list[Any]:
        timed = {"seconds", "tokens_per_second"}
        return [(step, {k: v for k, v in metrics.items() if k not in timed}) for step, metrics in run.seen]

    assert exact(late) == exact(each)
    assert [step for step, _ in late.seen] == list(range(1, 13))


def test_metrics_are_read_at_the_interval_and_before_a_checkpoint(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, checkpoint_every=5, max_steps=9))
    told: list[tuple[int, int]] = []
    run_steps(
        attrs.evolve(run.setup, log_every=4, observe=lambda step, _: told.append((step, run.state.step))), run.state
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4), (5, 5), (6, 8), (7, 8), (8, 8), (9, 9)]


def test_metrics_are_written_when_a_signal_or_an_error_ends_the_run(scene: Callable[..., Scene]) -> None:
    stopped, failed = scene("stopped"), scene("failed")
    for run, error in ((stopped, Stopped), (failed, ZeroDivisionError)):
        passes = [0]

        def entered(*_: Any, _error: Any = error, _passes: list[int] = passes) -> None:
            _passes[0] += 1
            if _passes[0] == 2 * 3 + 1:  # in the fourth step
                signal.raise_signal(signal.SIGTERM) if _error is Stopped else 1 / 0

        run.setup.denoiser.module.register_forward_pre_hook(entered)
        with pytest.raises(error):
            run_steps(attrs.evolve(run.setup, log_every=100), run.state)
        assert [step for step, _ in run.seen] == [1, 2, 3]


@pytest.mark.parametrize(
    ("skips", "reads"), [(True, ["tolist", "tolist"]), (False, ["item"] * 6 + ["tolist", "tolist"])]
)
def test_between_two_readings_the_host_reads_nothing_or_one_value_a_step(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, skips: bool, reads: list[str]
) -> None:
    """Nothing where fused kernels leave bad steps out, else whether the step is finite."""
    run = fused(scene(config=attrs.evolve(FUSED, max_steps=6, checkpoint_every=100)))
    run.state.optimizers._sharded = not skips
    with ReadByTheHost(monkeypatch) as read:
        run_steps(attrs.evolve(run.setup, log_every=6, save=lambda: None), run.state)
    assert read.found == reads


def bad_steps(run: Scene, bad: set[int]) -> None:
    """Make the gradient of one parameter infinite in these steps, counted from 0."""
    spoilt = next(iter(run.state.parameters.values()))
    spoilt.register_hook(lambda g: torch.full_like(g, torch.inf) if run.state.step in bad else g)


def test_a_device_leaves_a_bad_step_out_as_if_it_had_not_been(scene: Callable[..., Scene]) -> None:
    """Weights, moments, the optimizer's counter and the average: all bits of a run that decides on the CPU."""
    device, host = fused(scene("device", FUSED)), fused(scene("host", FUSED))
    for run in (device, host):
        bad_steps(run, {0, 3, 4, 9})
    host.state.optimizers._sharded = True  # decides on the CPU
    for run in (device, host):
        run_steps(attrs.evolve(run.setup, log_every=100), run.state)
    assert [m["skipped"] for _, m in device.seen] == [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert [m["learning_rate"] for _, m in device.seen] == [m["learning_rate"] for _, m in host.seen]
    for name, parameter in device.state.parameters.items():
        assert torch.equal(parameter, host.state.parameters[name]), name
        mine, other = (r.state.optimizers.parts[0].state[r.state.parameters[name]] for r in (device, host))
        assert all(torch.equal(value, other[key]) for key, value in mine.items()), name
        assert mine["step"] == 12 - 4
        torch.testing.assert_close(device.state.average.values[name], host.state.average.values[name])  # type: ignore[union-attr]


def test_a_step_left_out_leaves_every_bit_of_the_average() -> None:
    value = {"w": torch.nn.Parameter(torch.randn(7))}
    average = WeightAverage(value, 0.9)
    average.update({"w": torch.nn.Parameter(torch.randn(7))}, 3, skip=torch.tensor(True))
    assert torch.equal(average.values["w"], value["w"])


@pytest.mark.parametrize("every", [1, 4, 100])
def test_too_many_bad_steps_stop_the_run_and_nothing_of_them_is_saved(scene: Callable[..., Scene], every: int) -> None:
    run = fused(scene(config=attrs.evolve(FUSED, nan_patience=2, checkpoint_every=8)))
    examples = poison(list(run.setup.examples))
    with pytest.raises(NumericsError, match="3 steps in a row, up to step 3"):
        run_steps(attrs.evolve(run.setup, examples=examples, log_every=every), run.state)
    assert not checkpoint_folder(run.folder, 8).exists()
    assert [step for step, _ in run.seen][:3] == [1, 2, 3]


def test_a_resumed_run_with_steps_left_out_ends_bit_identical(scene: Callable[..., Scene]) -> None:
    whole = fused(scene("whole", FUSED))
    bad_steps(whole, {0, 3, 7})
    run_steps(attrs.evolve(whole.setup, log_every=4), whole.state)
    resumed = fused(scene("whole", FUSED))
    bad_steps(resumed, {0, 3, 7})
    restore(checkpoint_folder(whole.folder, 5), resumed.state)
    run_steps(attrs.evolve(resumed.setup, save=lambda: None, log_every=3), resumed.state)
    for name, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[name]), name


@pytest.mark.parametrize(("optimizer", "on_device"), [("adamw", False), ("muon", False)])
def test_optimizers_without_fused_kernels_are_decided_by_the_host(optimizer: str, on_device: bool) -> None:
    parameters = {"blocks.0.weight": torch.nn.Parameter(torch.randn(4, 4)), "b": torch.nn.Parameter(torch.randn(4))}
    found = Optimizers(parameters, TrainConfig(optimizer=optimizer), "blocks")
    assert found.skip_on_device == on_device
