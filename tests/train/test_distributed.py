"""Several processes: what they compute is what one would, they stay equal, and a failure of one is told once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError, DataError
from qframe.interfaces import Example
from qframe.train.distributed import ALONE, Processes
from qframe.train.loop import run_steps
from tests.train.conftest import toy_example
from tests.train.processes import needs_fork, together
from tests.train.test_loop import BASE, Scene

pytestmark = needs_fork
CPU = torch.device("cpu")

EXACT = attrs.evolve(BASE, precision="float32")  # to be compared with another order of sums

SPLIT: dict[str, tuple[TrainConfig, TrainConfig]] = {
    "fixed": (
        attrs.evolve(EXACT, batching="fixed", batch_size=1, gradient_accumulation=1),
        attrs.evolve(EXACT, batching="fixed", batch_size=2, gradient_accumulation=1),
    ),
    "bucketed, accumulated, averaged, captions dropped": (
        attrs.evolve(EXACT, batch_size=2, gradient_accumulation=2, ema_decay=0.9, caption_dropout=0.3),
        attrs.evolve(EXACT, batch_size=4, gradient_accumulation=2, ema_decay=0.9, caption_dropout=0.3),
    ),
    "packed": (
        attrs.evolve(EXACT, batching="packed", tokens_per_batch=40, gradient_accumulation=1),
        attrs.evolve(EXACT, batching="packed", tokens_per_batch=40, gradient_accumulation=2),
    ),
    "full, muon": (
        attrs.evolve(EXACT, mode="full", optimizer="muon", batch_size=1),
        attrs.evolve(EXACT, mode="full", optimizer="muon", batch_size=2),
    ),
}
"""What two processes are told, and what one must be told to take the same steps."""


@pytest.fixture
def trained(tmp_path: Path, mixed_examples: list[Example]) -> Callable[..., list[dict[str, Tensor]]]:
    """The weights after a toy run, in every process."""

    def train(world: int, config: TrainConfig, dropout: float = 0.0) -> list[dict[str, Tensor]]:
        def work(processes: Processes) -> dict[str, Tensor]:
            processes.connect(CPU, timeout=20)
            scene = Scene(tmp_path / f"run-{processes.rank}", mixed_examples, config, dropout)
            run_steps(attrs.evolve(scene.setup, processes=processes, save=lambda: None), scene.state)
            losses = torch.tensor([metrics["loss"] for _, metrics in scene.seen])
            return scene.weights() | {"losses": losses}

        if world == 1:
            return [work(ALONE)]
        ended = together(world, work, tmp_path / f"world-{world}")
        assert [code for code, _ in ended] == [0] * world
        return [weights for _, weights in ended]

    return train


@pytest.mark.parametrize("case", SPLIT)
def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(
    trained: Callable[..., list[dict[str, Tensor]]], case: str
) -> None:
    two, one = (attrs.evolve(config, max_steps=3) for config in SPLIT[case])
    (whole,) = trained(1, one)
    for shared in trained(2, two):
        assert shared.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(
                shared[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n} {text}"
            )


def test_after_twenty_steps_all_processes_have_the_same_bits(
    trained: Callable[..., list[dict[str, Tensor]]],
) -> None:
    config = attrs.evolve(BASE, batch_size=1, max_steps=20, ema_decay=0.9, caption_dropout=0.3)
    first, *others = trained(3, config, dropout=0.3)
    assert first["losses"].isfinite().all()
    for other in others:
        assert all(torch.equal(first[name], value) for name, value in other.items())


def test_dropout_differs_between_processes(tmp_path: Path, mixed_examples: list[Example]) -> None:
    """Alike, two processes would drop the same places of different samples. The first draws what one alone draws."""
    config = attrs.evolve(BASE, batch_size=1, max_steps=1)

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        scene = Scene(tmp_path / f"run-{processes.rank}", mixed_examples, config)
        velocity, drawn = scene.setup.denoiser.velocity, []

        def drawing(*args: Any, **kwargs: Any) -> Tensor:
            drawn.append(torch.rand(1))
            return velocity(*args, **kwargs)

        scene.setup.denoiser.velocity = drawing  # type: ignore[method-assign]
        run_steps(attrs.evolve(scene.setup, processes=processes, save=lambda: None), scene.state)
        return {"drawn": torch.cat(drawn)}

    (_, first), (_, second) = together(2, work, tmp_path)
    assert torch.equal(first["drawn"], work(ALONE)["drawn"])
    assert len({*first["drawn"].tolist(), *second["drawn"].tolist()}) == 4


def test_a_gradient_that_is_not_finite_in_one_process_skips_the_step_in_all(tmp_path: Path) -> None:
    examples = [toy_example(index) for index in range(4)]
    examples[2] = attrs.evolve(examples[2], target=torch.full_like(examples[2].target, torch.inf))
    config = attrs.evolve(BASE, batch_size=2, gradient_accumulation=1, max_steps=3, nan_patience=0)

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        scene = Scene(tmp_path / f"run-{processes.rank}", examples, config)
        start = scene.weights()
        with pytest.raises(Exception, match="example-2"):
            run_steps(attrs.evolve(scene.setup, processes=processes, save=lambda: None), scene.state)
        assert scene.state.step == 1
        assert all(torch.equal(start[name], value) for name, value in scene.weights().items())
        return {}

    assert [code for code, _ in together(2, work, tmp_path)] == [0, 0]


def test_a_parameter_that_only_one_process_uses_gets_its_gradient_and_one_that_none_uses_gets_none(
    tmp_path: Path,
) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        both, second, none = (nn.Parameter(torch.ones(3)) for _ in range(3))
        (both.sum() + (second.sum() * 5 if processes.rank == 1 else 0)).backward()
        parameters = [both, second, none]
        used = processes.total([parameter.grad is not None for parameter in parameters])
        assert used == [2, 1, 0]
        processes.sum_gradients(parameters, used)
        assert both.grad is not None
        assert second.grad is not None
        assert none.grad is None
        return {"both": both.grad, "second": second.grad}

    for code, gradients in together(2, work, tmp_path):
        assert code == 0
        assert torch.equal(gradients["both"], torch.full((3,), 2.0))
        assert torch.equal(gradients["second"], torch.full((3,), 5.0))


def test_meetings_outlast_the_time_out_of_a_step(tmp_path: Path) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=0.5)
        if processes.rank == 1:
            time.sleep(1.5)
        processes.meet()
        assert processes.agree(lambda: f"chosen by {processes.rank}") == "chosen by 0"
        assert processes.texts(str(processes.rank)) == ["0", "1"]
        return {}

    assert [code for code, _ in together(2, work, tmp_path)] == [0, 0]


def test_pictures_that_several_processes_made_are_known_to_all(tmp_path: Path) -> None:
    made = [Image.new(mode, (4 + index, 5), index) for index, mode in enumerate(("RGB", "RGBA", "RGB"))]

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        own = {index: picture for index, picture in enumerate(made) if index % 2 == processes.rank}
        assert [picture.tobytes() for picture in processes.exchange(own, 3)] == [p.tobytes() for p in made]
        return {}

    assert [code for code, _ in together(2, work, tmp_path)] == [0, 0]


@pytest.mark.parametrize("moment", ["meeting", "step"])
def test_a_failure_of_one_process_ends_all_with_its_code_and_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], moment: str
) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        if processes.rank == 1:
            raise DataError("7.png: not a picture")
        if moment == "meeting":
            processes.meet()
        else:
            processes.total([1.0])
        return {}

    began = time.monotonic()
    assert [code for code, _ in together(2, work, tmp_path)] == [3, 3]
    assert time.monotonic() - began < 15
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[told")]
    assert told == ["[told by 1] 7.png: not a picture"]


def test_a_process_that_does_not_answer_ends_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=1)
        if processes.rank == 1:
            time.sleep(4)
        processes.total([1.0])
        return {}

    (code, _), _ = together(2, work, tmp_path)
    assert code == 6
    assert "did not answer for train.process_timeout" in capfd.readouterr().err


@pytest.mark.parametrize("owner", ["a collective of ours", "a collective of fully_shard"])
def test_a_process_that_was_killed_is_missed_by_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], owner: str
) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        processes.total([1.0])
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if owner == "a collective of ours":
            processes.total([1.0])
        torch.distributed.all_reduce(torch.ones(1))
        return {}

    assert [code for code, _ in together(2, work, tmp_path)] == [6, -signal.SIGKILL]
    assert "another process of this run ended" in capfd.readouterr().err


def test_devices_of_one_process_are_refused_for_several() -> None:
    import qframe
    from qframe.train.trainer import Trainer

    config = qframe.load_config(family="qwen-edit", overrides=['devices=["cpu"]'])
    with pytest.raises(ConfigError, match="there are 2"):
        Trainer(config, processes=Processes(0, 2))
