"""Every remedy that is named can be followed literally, and saves what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qframe
from qframe.compose import compose
from qframe.preflight import Forecast
from qframe.preflight.outlook import sampling_outlook
from qframe.train.trainer import Trainer
from tests.qwen import tiny

CPU = torch.device("cpu")

RUNS: dict[str, tuple[str, ...]] = {
    "edit, a batch of four": ("train.batch_size=4", "dtype=float32"),
    "packed, per-sample RoPE": (
        "denoiser.use=qwen-per-sample-rope",
        "train.batching=packed",
        "train.tokens_per_batch=400",
        "sample.batch_size=2",
    ),
    "full, averaged, live": ("train.mode=full", "train.ema_decay=0.9", "cache.enabled=false"),
    "quantised": ("denoiser.quantise.use=quanto", "encoder.dtype=float32"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-remedies")).folder


def trainer(model: Path, *overrides: str) -> Trainer:
    common = ("device=cpu", "data.options.count=2", "data.options.validation=1")
    values = {"model": str(model), "output": "nowhere"}
    return Trainer(qframe.load_config(family="qwen-edit", values=values, overrides=(*common, *overrides)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_each_remedy_of_a_training_run_is_followed_and_saves_what_it_says(name: str, model: Path) -> None:
    found = trainer(model, *RUNS[name]).outlook.forecast()
    remedies = found.remedies()
    assert len(remedies) > 4
    for remedy in remedies:
        after = trainer(model, *RUNS[name], *remedy.settings).outlook.forecast()
        for (device, stage), saved in remedy.saves.items():
            assert saved > 0
            here = after.needs[device]
            left = here[stage] if stage in here else max(here.values(), key=lambda parts: sum(parts.values()))
            assert sum(found.needs[device][stage].values()) - sum(left.values()) == saved, remedy
    settings = {" ".join(remedy.settings) for remedy in remedies}
    assert not any("resident_blocks" in one or "offload" in one for one in settings)  # no help on a CPU
    if name.startswith("edit"):
        first = next(iter(found.places()))
        saves = [remedy.saves.get(first, 0) for remedy in remedies]
        assert saves == sorted(saves, reverse=True)
        assert {
            "train.gradient_checkpointing=true",
            "train.batch_size=1 train.gradient_accumulation=4",
            "denoiser.quantise.use=quanto",
            "encoder.quantise.use=quanto",
            "cache.batch_size=1",
        } <= settings
        assert f"recipe.min_area={tiny.AREA // 2} recipe.max_area={tiny.AREA // 2}" in settings


@pytest.mark.slow
def test_each_remedy_of_a_sampling_run_is_followed_and_saves_what_it_says(model: Path) -> None:
    def outlook(*overrides: str) -> Forecast:
        values = {"model": str(model), "device": "cpu"}
        config = qframe.load_config(family="qwen-edit", values=values, overrides=("dtype=float32", *overrides))
        return sampling_outlook(compose(config)).forecast

    found = outlook()
    assert found.remedies()
    for remedy in found.remedies():
        after = outlook(*remedy.settings)
        assert found.peak(CPU) - after.peak(CPU) == remedy.saves[CPU, "sampling"], remedy
