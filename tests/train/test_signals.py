"""Asked to stop: within a step, twice, and while something else than training goes on."""
# ruff: noqa: F811 (fixtures of neighbouring modules are imported, and named as arguments)

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from qframe.cache import Cache
from qframe.cli import main
from qframe.config import dump_config
from qframe.config.schema import Config
from qframe.files.storage import verify_folder
from qframe.interfaces import Example
from qframe.train.distributed import Processes
from qframe.train.loop import run_steps
from qframe.train.signals import Stopped
from qframe.train.state import checkpoint_folder, restore
from tests.train.processes import needs_fork, together
from tests.train.test_loop import BASE, Scene, scene  # noqa: F401 (a fixture)
from tests.train.test_trainer import config, model, same, weights  # noqa: F401 (fixtures)

LONG_STEPS = attrs.evolve(BASE, batch_size=1, gradient_accumulation=6, max_steps=4, checkpoint_every=100)


class SignalInPass:
    """Counts the forward passes of a run, and raises a signal in one of them.

    Attributes:
        passes: The number of passes so far.
    """

    def __init__(self, run: Scene, nth: int, number: int) -> None:
        self.passes = 0

        def entered(*_: Any) -> None:
            self.passes += 1
            if self.passes == nth:
                signal.raise_signal(number)

        run.setup.denoiser.module.register_forward_pre_hook(entered)


@pytest.mark.parametrize(("passes", "step"), [(2, 0), (6 + 3, 1)], ids=["in the first step", "in a later one"])
def test_a_step_is_left_out_where_its_batches_would_take_long_and_is_taken_again_as_it_was(
    scene: Callable[..., Scene],
    passes: int,
    step: int,
) -> None:
    whole, broken = scene("whole", LONG_STEPS), scene("broken", LONG_STEPS)
    run_steps(whole.setup, whole.state)
    signalling = SignalInPass(broken, passes, signal.SIGTERM)
    with pytest.raises(Stopped, match=f"stopped at step {step}; everything is saved") as caught:
        run_steps(broken.setup, broken.state)
    assert caught.value.exit_code == 143
    assert signalling.passes == passes, "nothing more was computed"
    assert all(parameter.grad is None for parameter in broken.state.parameters.values())
    saved = checkpoint_folder(broken.folder, step)
    assert verify_folder(saved) == []

    resumed = scene("broken", LONG_STEPS)
    restore(saved, resumed.state)
    run_steps(resumed.setup, resumed.state)
    for name, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[name]), name


@needs_fork
def test_a_signal_that_one_process_hears_stops_all_after_the_same_step(
    tmp_path: Path,
    mixed_examples: list[Example],
) -> None:
    def work(processes: Processes) -> dict[str, torch.Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        run = Scene(tmp_path / f"run-{processes.rank}", mixed_examples, LONG_STEPS)
        received = 6 + 3 if processes.rank else 0  # never in the first process
        signalling = SignalInPass(run, received, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped at step 2"):
            run_steps(attrs.evolve(run.setup, processes=processes), run.state)
        assert verify_folder(checkpoint_folder(run.folder, 2)) == []
        return {"passes": torch.tensor(signalling.passes)} | run.weights()

    (one, first), (other, second) = together(2, work, tmp_path / "world")
    assert (one, other) == (0, 0)
    assert first["passes"] == second["passes"] == 12
    assert same(first, second)


class Twice(Exception):
    """What a second signal raises here."""


@pytest.fixture
def own_handler() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Twice

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_handler")
def test_a_second_signal_has_its_usual_effect_at_once(scene: Callable[..., Scene]) -> None:
    run = scene()

    def observe(step: int, metrics: Mapping[str, float]) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Twice):
        run_steps(attrs.evolve(run.setup, observe=observe), run.state)
    assert not checkpoint_folder(run.folder, 3).exists()


@pytest.fixture(autouse=True)
def _an_interrupt_is_heard() -> Iterator[None]:
    """Where the tests run in the background of a shell, SIGINT is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _cli(config: Config, file: Path, *more: str) -> int:
    file.write_text(dump_config(config))
    return main(["train", "--config", str(file), *more])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_while_encoding_what_is_encoded_stays(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    import qframe.cache.examples as module

    calls, encode = [], module.encode_pixels

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return encode(*given, **named)

    monkeypatch.setattr(module, "encode_pixels", interrupted)
    settings = config("run", "cache.batch_size=1", "data.options.validation=0", "sample.count=0")
    assert _cli(settings, tmp_path / "run.toml") == code
    with Cache(tmp_path / "cache") as cache:
        assert 0 < cache.stats().entries < 10, "of ten pictures"
    assert _cli(settings, tmp_path / "run.toml") == 0, "a run without a checkpoint begins again in its folder"


def test_stopped_while_sampling_at_the_end_the_result_is_there(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import qframe.train.samples as module

    calls, run_plan = [], module.run_plan

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first is the sampling before training
            signal.raise_signal(signal.SIGTERM)
        return run_plan(*given, **named)

    monkeypatch.setattr(module, "run_plan", interrupted)
    assert _cli(config("run"), tmp_path / "run.toml") == 143
    made = weights(tmp_path / "run")
    assert _cli(config("run"), tmp_path / "run.toml", "--resume") == 0
    assert same(made, weights(tmp_path / "run"))
    assert list((tmp_path / "run" / "samples").rglob("*.png"))


def test_what_takes_long_after_a_step_ends_at_once_and_costs_nothing(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples while training take minutes, and torchrun kills after 30 s: the step is saved before they begin."""
    import qframe.train.samples as module

    settings = ("sample.every=1", "train.checkpoint_every=100", "data.options.validation=1", "logging.every=100")
    assert _cli(config("whole", *settings), tmp_path / "whole.toml") == 0
    calls, run_plan = [], module.run_plan

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first is the sampling before training
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("sampling went on")
        return run_plan(*given, **named)

    monkeypatch.setattr(module, "run_plan", interrupted)
    assert _cli(config("run", *settings), tmp_path / "run.toml") == 143
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000001"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.undo()
    assert _cli(config("run", *settings), tmp_path / "run.toml", "--resume") == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
