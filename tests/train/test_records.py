"""A recipe is asked once per record what must be encoded of it, however a run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import qframe
from qframe.config.schema import Config
from qframe.interfaces import ExampleInputs, Record
from qframe.preflight import forecast_training
from qframe.train.trainer import Trainer
from tests.qwen import tiny

COUNT, HELD_OUT = 5, 2


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        settings = [
            "train.max_steps=2",
            "train.checkpoint_every=1",
            "train.caption_dropout=0.2",
            f"data.options.count={COUNT}",
            f"data.options.validation={HELD_OUT}",
            "validation.every=1",
            "sample.num_inference_steps=1",
            "device=cpu",
        ]
        values = {"model": str(model), "output": str(tmp_path / "run")}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-records"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


def counted(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the recipe of a trainer is asked for the inputs of each record, from now on."""
    asked: Counter[str] = Counter()
    inputs = trainer.composition.recipe.inputs

    def counting(record: Record) -> ExampleInputs:
        asked[record.id] += 1
        return inputs(record)

    monkeypatch.setattr(trainer.composition.recipe, "inputs", counting)
    return asked


def expected(trainer: Trainer) -> Counter[str]:
    return Counter(record.id for record in (*trainer.records, *trainer.measured.records))


def test_a_cached_run_asks_once_per_record_and_so_does_one_that_is_resumed(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Trainer(config())
    asked = counted(first, monkeypatch)
    forecast_training(first.composition, first.inputs)  # as `qframe train` does before the run
    first.fit()
    assert asked == expected(first)
    assert sum(asked.values()) == COUNT + HELD_OUT
    resumed = Trainer(config("train.max_steps=3"))
    asked = counted(resumed, monkeypatch)
    forecast_training(resumed.composition, resumed.inputs)
    resumed.fit(resume="latest")
    assert asked == expected(resumed)


def test_a_live_run_asks_once_per_record(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config("cache.enabled=false"))
    asked = counted(trainer, monkeypatch)
    forecast_training(trainer.composition, trainer.inputs)
    trainer.fit()
    assert asked == expected(trainer)
