"""Validation while training: it changes nothing, its curve is smooth, and its records are never trained on."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qframe
from qframe.config.schema import Config, DataConfig, TrainConfig
from qframe.errors import ConfigError, DataError
from qframe.interfaces import Example, Record
from qframe.pictures.picture import Picture
from qframe.plugins.registry import load_registry
from qframe.train.held_out import QUANTILES, held_out_losses
from qframe.train.noise_levels import sigma_quantile
from qframe.train.records import split_records
from qframe.train.run import Run
from qframe.train.trainer import Trainer
from tests.qwen import tiny
from tests.train.conftest import HalvingSchedule, ToyDenoiser
from tests.train.test_loop import Scene

STEPS = 4
WATCHED = ("validation.every=2", "validation.count=2", "sample.every=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes 64 x 64 pictures as they are."""
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-validation"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(output: str, *overrides: str) -> Config:
        settings = [
            f"train.max_steps={STEPS}",
            "train.learning_rate=0.05",
            "train.checkpoint_every=2",
            "train.caption_dropout=0.2",
            "lora.rank=4",
            "lora.dropout=0.2",
            "data.options.count=4",
            "data.options.validation=2",
            "sample.num_inference_steps=1",
            "sample.batch_size=2",
            "device=cpu",
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "lora.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def pictures(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("*.png"))]


def test_validation_changes_no_bit_of_the_run_and_survives_a_resume(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    Trainer(config("plain", "sample.count=0", "data.options.validation=0")).fit()
    Trainer(config("watched", *WATCHED)).fit()
    Trainer(config("resumed", *WATCHED, "train.max_steps=2")).fit()
    Trainer(config("resumed", *WATCHED)).fit(resume="latest")
    plain, watched, resumed = (tmp_path / name for name in ("plain", "watched", "resumed"))
    for other in (watched, resumed):
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(plain).items())

    lines = metrics(watched)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 2, 4]
    assert [line["loss"] for line in lines if "loss" in line] == [line["loss"] for line in metrics(plain)]
    for line in (line for line in lines if "val_loss" in line):
        quantiles = [line[f"val_loss_q{number}"] for number in range(QUANTILES)]
        assert line["val_loss"] == pytest.approx(sum(quantiles) / QUANTILES)
    told = {line["step"]: line.get("val_loss") for line in lines}
    assert {line["step"]: line.get("val_loss") for line in metrics(resumed)} == told
    assert told[0] != told[4]

    samples = watched / "samples"
    moments = ["before", *(f"step-{step:06d}" for step in (1, 2, 3)), "after"]
    shown = [pictures(samples / moment) for moment in moments]
    assert {len(files) for files in shown} == {2}
    assert all(earlier != later for earlier, later in pairwise(shown))
    assert pictures(resumed / "samples" / "step-000003") == shown[3]


@pytest.fixture
def scene(tmp_path: Path, mixed_examples: list[Example]) -> Scene:
    settings = TrainConfig(max_steps=3, learning_rate=0.01, mode="full")
    return Scene(tmp_path / "run", mixed_examples, settings)


def test_the_validation_loss_is_that_of_the_flow_at_each_quantile(scene: Scene, mixed_examples: list[Example]) -> None:
    """Against a network that predicts nothing: the mean square of noise minus data, at sigmas of the quantile."""
    seen: list[torch.Tensor] = []

    class Nothing(ToyDenoiser):
        def velocity(self, x: Any, sigma: Any, cond: Any, references: Any = None, **more: Any) -> Any:
            seen.append(sigma)
            return torch.zeros_like(x.tokens)

    setup = attrs.evolve(scene.setup, denoiser=Nothing())
    found = held_out_losses(setup, mixed_examples)
    sigmas = torch.stack(seen)  # [examples, QUANTILES]
    for quantile in range(QUANTILES):
        bounds = sigma_quantile(
            scene.config, HalvingSchedule(), 4, torch.tensor([quantile / QUANTILES, (quantile + 1) / QUANTILES])
        )
        assert (sigmas[:, quantile] > bounds[0]).all()
        assert (sigmas[:, quantile] < bounds[1]).all()
        assert sigmas[:, quantile].unique().numel() == len(mixed_examples)
    power = torch.stack([example.target.square().mean() for example in mixed_examples]).mean().item()
    assert found["val_loss"] == pytest.approx(1 + power, rel=0.15)  # noise has mean square 1
    assert held_out_losses(setup, mixed_examples) == found


def test_the_validation_loss_leaves_the_network_and_the_random_numbers_as_they_were(
    scene: Scene, mixed_examples: list[Example]
) -> None:
    module = scene.setup.denoiser.module.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    held_out_losses(scene.setup, mixed_examples)
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_validation_loss_counts_where_training_counts(scene: Scene, mixed_examples: list[Example]) -> None:
    """What lies outside the region that a recipe weighs changes nothing; inside, it does."""

    def corner(example: Example, generator: torch.Generator) -> torch.Tensor:
        weight = torch.zeros(example.target.shape[1:])
        weight[:2, :2] = 1  # one token
        return weight

    class Nothing(ToyDenoiser):
        def velocity(self, x: Any, sigma: Any, cond: Any, references: Any = None, **more: Any) -> Any:
            return torch.zeros_like(x.tokens)

    setup = attrs.evolve(scene.setup, denoiser=Nothing(), loss_map=corner)
    example = mixed_examples[0]
    found = held_out_losses(setup, [example])
    outside, inside = example.target.clone(), example.target.clone()
    outside[:, 2:, 2:] += 1
    inside[:, :2, :2] += 1
    assert held_out_losses(setup, [attrs.evolve(example, target=outside)]) == found
    assert held_out_losses(setup, [attrs.evolve(example, target=inside)]) != found


def test_processes_share_the_held_out_examples(scene: Scene, mixed_examples: list[Example]) -> None:
    alone = held_out_losses(scene.setup, mixed_examples)
    parts: list[list[float]] = []
    for rank in range(4):  # six examples: two of the processes have one less to do, and enter the network as often
        processes = SimpleNamespace(rank=rank, world=4, total=lambda values: parts.append(list(values)) or values)
        held_out_losses(attrs.evolve(scene.setup, processes=processes), mixed_examples)
    summed = [sum(column) / len(mixed_examples) for column in zip(*parts, strict=True)]
    assert summed == pytest.approx([alone[f"val_loss_q{quantile}"] for quantile in range(QUANTILES)])


class Listed:
    """A source of so many records."""

    def __init__(self, count: int, validation: Sequence[Record] = ()) -> None:
        self._count, self._validation = count, validation

    def records(self) -> Sequence[Record]:
        return [Record(id=f"r{i}", origin="", prompt="p", target=Picture(f"{i}.png", b"")) for i in range(self._count)]

    def validation(self) -> Sequence[Record]:
        return self._validation


def split(count: int, holdout: float, **settings: Any) -> tuple[list[str], list[str]]:
    config = qframe.load_config(family="qwen-edit", values=settings)
    config = attrs.evolve(config, data=DataConfig(holdout=holdout))
    trained, held = split_records(Listed(count), config)  # type: ignore[arg-type]
    return [record.id for record in trained], [record.id for record in held]


def test_held_out_records_are_chosen_by_their_ids_and_never_trained_on() -> None:
    trained, held = split(2000, 0.1)
    assert 150 < len(held) < 250
    assert not set(trained) & set(held)
    assert len(trained) + len(held) == 2000
    more_trained, more_held = split(2500, 0.1)
    assert set(trained) <= set(more_trained)  # what is added moves no other
    assert set(held) <= set(more_held)
    assert set(held) <= set(split(2000, 0.2)[1])


def test_nothing_to_train_on_or_to_validate_is_an_error_before_any_work() -> None:
    with pytest.raises(DataError, match="leaves no record to train on"):
        split(1, 0.999)
    with pytest.raises(ConfigError, match=r"validation\.every is set, and no record is held out"):
        split(4, 0.0, validation={"every": 2})


def folder_of_edits(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for index in range(count):
        tiny.picture(index, 64, 64).save(folder / f"{index}.png")
        tiny.picture(index + 10, 64, 64).save(folder / f"{index}_ref.png")
        (folder / f"{index}.txt").write_text(f"edit {index}")
    return folder


def test_prompts_and_data_of_the_users_own_are_sampled(config: Callable[..., Config], tmp_path: Path) -> None:
    data = folder_of_edits(tmp_path / "wanted", 2)
    prompts = '["make it blue", "make it red", "add a dot"]'
    trainer = Trainer(config("run", f"sample.prompts={prompts}", f"sample.data={data}", "train.max_steps=1"))
    trainer.fit()
    rows = json.loads((tmp_path / "run" / "samples" / "records.json").read_text())
    assert [row["prompt"] for row in rows] == ["make it blue", "make it red", "add a dot"]
    assert len(pictures(tmp_path / "run" / "samples" / "before")) == 3
    assert trainer.source.success(trainer.sampled[0], Image.new("RGB", (64, 64))) is None
    with pytest.raises(DataError, match="does not exist"):
        Trainer(config("other", "sample.data=nowhere.jsonl"))


# -- loggers --------------------------------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, **settings: Any) -> None:
        self.settings, self.logged, self.exit_code = settings, list[tuple[int, dict[str, Any]]](), None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_loggers_hear_metrics_and_samples_of_a_run_that_resumes(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    started: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        started.append(FakeRun(**settings))
        return started[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda path: f"picture {path}"))
    use = ('logging.use=["csv", "tensorboard", "wandb"]', "logging.project=cats", *WATCHED)
    Trainer(config("run", *use, "train.max_steps=2")).fit()
    Trainer(config("run", *use)).fit(resume="latest")
    run = tmp_path / "run"
    lines = metrics(run)

    with (run / "logs" / "metrics.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["step"] for row in table] == ["0", "1", "2", "3", "4"]
    assert [float(row["loss"]) for row in table[1:]] == [line["loss"] for line in lines if "loss" in line]
    losses = {str(line["step"]): str(line["val_loss"]) for line in lines if "val_loss" in line}
    assert [row["val_loss"] for row in table] == [losses.get(row["step"], "") for row in table]

    events = EventAccumulator(str(run / "logs" / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/val_loss_q3")] == [0, 2, 4]
    shown = events.Tags()["images"]
    assert len(shown) == 2
    assert [event.step for event in events.Images(shown[0])] == [0, 1, 2, 3, 4]

    first, second = started
    assert first.settings["project"] == "cats"
    assert first.settings["config"]["train.learning_rate"] == 0.05
    assert first.settings["id"] == second.settings["id"]
    assert [step for step, values in first.logged + second.logged if "loss" in values] == [1, 2, 3, 4]
    assert any(str(value).startswith("picture ") for _, values in first.logged for value in values.values())
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_a_logger_that_fails_is_named_once_and_the_run_goes_on(
    config: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @qframe.hookimpl
        def qframe_step_end(self, run: Run, step: int) -> None:
            raise OSError("the network is down")

        @qframe.hookimpl
        def qframe_samples(self, files: Sequence[Path]) -> None:
            raise RuntimeError("no room")

    registry = load_registry()
    quiet = ("data.options.validation=0", "sample.count=1", 'logging.use=["csv"]')
    with registry.observing({"broken": Broken()}), caplog.at_level(logging.WARNING):
        Trainer(config("run", *quiet)).fit()
    said = [record.getMessage() for record in caplog.records if "logger broken" in record.getMessage()]
    assert said == ["logger broken failed at qframe_samples and is passed over: RuntimeError: no room"]
    assert (tmp_path / "run" / "logs" / "metrics.csv").exists()
    assert (tmp_path / "run" / "lora.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("tensorboard", "torch.utils.tensorboard", "needs the package tensorboard"),
        ("wandb", "wandb", "needs the package wandb"),
        ("tensorbord", "os", "no logger 'tensorbord'; did you mean 'tensorboard'"),
    ],
)
def test_a_logger_that_is_not_there_is_told_when_the_trainer_is_made(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    if module != "os":
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message):
        Trainer(config("run", f'logging.use=["{name}"]'))
