"""What a training step costs beside its network: `qframe bench train`."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import attrs
import pytest
import torch

import qframe
from qframe.cli import main
from qframe.errors import ConfigError
from qframe.progress import SILENT
from qframe_bench.measuring import Seconds
from qframe_bench.training import steps as bench
from qframe_bench.training.steps import step_ratios
from tests.counting import work

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> bench._Bench:
    """A batch of two on the embedded model."""
    overrides = ["device=cpu", "train.batch_size=2", "train.gradient_accumulation=3"]
    config = qframe.load_config(family="qwen-edit", overrides=overrides)
    return bench._Bench.of(config, tmp_path_factory.mktemp("cache"), 3, SILENT)


def test_the_bare_contestant_passes_what_the_step_passed(measured: bench._Bench) -> None:
    step = bench._Step(measured.setup, measured.state, bench._again(measured.setup))
    step()
    given: list[Any] = []
    hook = measured.setup.denoiser.module.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs, bench._kernels())), with_kwargs=True
    )
    before = {name: value.detach().clone() for name, value in measured.state.parameters.items()}
    with hook:
        bench._bare(measured.setup, measured.state, step.passes)
    assert [(one.args, one.kwargs, one.kernels) for one in step.passes] == given
    assert any(not torch.equal(value, before[name]) for name, value in measured.state.parameters.items())


def test_waiting_is_what_the_step_waits_for_its_batches(measured: bench._Bench) -> None:
    class Slow(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            time.sleep(0.03)
            return super().__getitem__(index)

    examples = Slow(measured.setup.examples[index] for index in range(3))
    setup = attrs.evolve(measured.setup, examples=examples)
    step = bench._Step(setup, measured.state, bench._again(setup))
    started = time.perf_counter()
    step()
    passed = time.perf_counter() - started
    assert 0.06 <= step.waited[0].wall < passed
    assert step.waited[0].processor < step.waited[0].wall


def test_turns_of_all_contestants_are_reported(measured: bench._Bench) -> None:
    found = measured.run(1)
    names = {"bare", "cached step", "live step", "bare again", "waiting for data"}
    assert {name: len(several) for name, several in found.items()} == dict.fromkeys(names, 1)
    assert found["waiting for data"][0].wall < found["cached step"][0].wall


def test_ratios_are_those_of_the_clock_that_counts() -> None:
    turns = {
        "bare": [Seconds(2.0, 1.0)] * 3,
        "cached step": [Seconds(8.0, 1.02)] * 3,
        "live step": [Seconds(8.0, 2.04)] * 3,
        "bare again": [Seconds(2.0, 1.1)] * 3,
        "waiting for data": [Seconds(4.0, 0.051)] * 3,
    }
    found = {ratio.name: ratio for ratio in step_ratios(turns, CPU)}
    bare, waiting = "cached step / forward, backward and optimizer alone", "waiting for data / cached step"
    assert (found[bare].value, found[bare].kept) == (pytest.approx(1.02), True)
    assert (found[waiting].value, found[waiting].kept) == (pytest.approx(0.05), False)
    assert found[f"{bare}, wall"].value == 4.0
    on_gpu = {ratio.name: ratio.value for ratio in step_ratios(turns, torch.device("cuda"))}
    twice = "the same work twice: bare again / bare"
    assert on_gpu == {bare: 4.0, waiting: 0.5, "cached step / live step": 1.0, twice: 1.0}


def test_a_step_that_is_skipped_is_no_measurement(measured: bench._Bench) -> None:
    broken = attrs.evolve(measured.setup.examples[0], target=torch.full((8, 8, 8), torch.nan))
    setup = attrs.evolve(measured.setup, examples=[broken] * 3)
    with pytest.raises(ConfigError, match="not finite"):
        bench._Step(setup, measured.state, bench._again(setup))()


@pytest.mark.parametrize(("value", "arguments", "code"), [(1.5, [], 0), (1.5, ["--check"], 1), (1.0, ["--check"], 0)])
def test_the_command_ends_with_1_where_it_is_to_check_and_a_promise_is_not_kept(
    value: float, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def compare(config: Any, **given: Any) -> bench.Report:
        asked.update(given)
        return bench.Report(
            family=config.family,
            device="cpu",
            batch=16,
            repeats=given["repeats"],
            measured={"bare": Seconds(2.0, 1.0)},
            read=None,
            entries=0,
            index=None,
            ratios=(bench.Ratio(name="step", value=value, most=1.03),),
        )

    monkeypatch.setattr(bench, "compare", compare)
    assert main(["bench", "train", "--index", "0", "--no-reading", "--repeats", "3", *arguments]) == code
    assert asked == {"repeats": 3, "examples": 32, "read": False, "entries": 0}
    assert "at most 1.03" in capsys.readouterr().out
    assert main(["bench", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratios"][0]["value"] == value


def test_a_step_computes_and_writes_what_its_network_does(measured: bench._Bench) -> None:
    """Counted, not timed: beside its network, its backward pass and its optimizer, a step only makes the batch."""
    cached = bench._Step(measured.setup, measured.state, bench._again(measured.setup))
    live_setup = attrs.evolve(measured.setup, examples=measured.live)
    live = bench._Step(live_setup, measured.state, bench._again(live_setup))
    step, encoded_again = work(cached), work(live)
    bare = work(partial(bench._bare, measured.setup, measured.state, cached.passes))
    assert step[0] == bare[0]
    assert step[1] <= 1.05 * bare[1]  # of the small embedded model's; 3.4 % are measured
    assert encoded_again[0] > 1.2 * step[0]
