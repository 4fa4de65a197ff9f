"""Metrics that are read late, and steps that the device leaves out by itself."""
# ruff: noqa: F811 (fixtures of neighbouring modules are imported, and named as arguments)

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qframe.config.schema import TrainConfig
from qframe.errors import NumericsError
from qframe.train import loop, readings
from qframe.train.distributed import LostProcessError, Processes
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


def test_the_seconds_of_a_step_are_its_own_where_saving_and_validating_take_longer(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only this test moves, with a device that computes each step for 8 s while nobody waits for it."""
    run = scene(config=attrs.evolve(BASE, checkpoint_every=5, max_steps=9))
    now, idle_from = [0.0], [0.0]
    step, tolist = loop.optimizer_step, Tensor.tolist

    def queued(*args: Any) -> Any:
        result = step(*args)
        idle_from[0] = max(now[0], idle_from[0]) + 8.0
        return result

    def awaited(tensor: Tensor) -> Any:
        if threading.current_thread() is threading.main_thread():
            now[0] = max(now[0], idle_from[0])
        return tolist(tensor)

    def slow(*_: Any) -> dict[str, float]:
        now[0] += 1000.0
        return {}

    clock = SimpleNamespace(monotonic=lambda: now[0])
    for module in (loop, readings):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(loop, "optimizer_step", queued)
    monkeypatch.setattr(Tensor, "tolist", awaited)
    setup = attrs.evolve(run.setup, log_every=4, save=slow, validate=slow, validation_due=lambda step: step % 3 == 0)
    run_steps(setup, run.state)
    assert [metrics["seconds"] for _, metrics in run.seen] == [8.0] * 9


def test_no_checkpoint_has_a_step_beyond_the_patience_for_bad_ones(scene: Callable[..., Scene]) -> None:
    """Neither one that is due, nor one before a validation, nor one for a signal, when metrics are read late."""
    for due in ("checkpoint", "validation", "signal"):
        config = attrs.evolve(BASE, nan_patience=2, checkpoint_every=3 if due == "checkpoint" else 100)
        run = scene(due, config)
        saved: list[int] = []
        bad_steps(run, {0, 1, 2})
        if due == "signal":
            spoilt = next(iter(run.state.parameters.values()))
            spoilt.register_hook(
                lambda _, run=run: signal.raise_signal(signal.SIGTERM) if run.state.step == 2 else None
            )
        setup = attrs.evolve(
            run.setup,
            log_every=100,
            save=lambda run=run, saved=saved: saved.append(run.state.step),
            validation_due=lambda step, due=due: due == "validation" and step == 3,
        )
        with pytest.raises((NumericsError, Stopped)) as caught:
            run_steps(setup, run.state)
        assert 3 not in saved, due
        assert [step for step, _ in run.seen] == list(range(1, run.state.step + 1)), due
        assert caught.type is (Stopped if due == "signal" and run.state.step == 2 else NumericsError), due


def test_a_validation_that_a_kill_ends_loses_the_line_of_no_step(scene: Callable[..., Scene]) -> None:
    """Whatever was observed before it began is all that a kill leaves: it runs no handler."""
    run = scene()
    before: dict[int, list[int]] = {}

    def validate(step: int) -> dict[str, float]:
        before[step] = [one for one, _ in run.seen]
        return {"val_loss": 0.5}

    setup = attrs.evolve(run.setup, log_every=100, validate=validate, validation_due=lambda step: step in (4, 7))
    run_steps(setup, run.state)
    assert before == {4: [1, 2, 3, 4], 7: [1, 2, 3, 4, 4, 5, 6, 7]}
    assert [(step, metrics) for step, metrics in run.seen if "val_loss" in metrics] == [
        (4, {"val_loss": 0.5}),
        (7, {"val_loss": 0.5}),
    ]


class ThatLosesAnother(Processes):
    """A process of two, whose third exchange within a step fails because the other process has ended."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(0, 2)
        self.error = error
        self.turns = 0

    def total(self, values: Sequence[float]) -> list[float]:
        self.turns += 1
        if self.turns == 3:
            raise self.error
        return list(values)

    def total_on_device(self, value: Tensor) -> Tensor:
        return value

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], used: Sequence[float]) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "reads"),
    [
        (LostProcessError("another process of this run ended", "Look for what killed it."), False),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), False),
        (KeyboardInterrupt(), False),
        (ZeroDivisionError("an error of this process alone"), True),
    ],
)
def test_the_device_is_not_waited_for_once_another_process_may_have_ended(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, error: BaseException, reads: bool
) -> None:
    """It would wait for ever for what that process was to send."""
    run = scene()
    with ReadByTheHost(monkeypatch) as read, pytest.raises(type(error)):
        run_steps(attrs.evolve(run.setup, log_every=100, processes=ThatLosesAnother(error)), run.state)
    assert ("tolist" in read.found) == reads
    assert [step for step, _ in run.seen] == ([1, 2] if reads else [])


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
