"""What is forecast of a training run is what the imitated card measures, besides the weights."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qframe
from qframe.cache.lengths import fitted_size
from qframe.diffusion.tables import without_tables
from qframe.preflight import forecast_training
from qframe.train import loop
from qframe.train.trainer import Trainer
from qframe_qwen_per_sample_rope import attention
from tests import imitated_card
from tests.imitated_card import METER
from tests.qwen import tiny
from tests.tiers import tiered

imitated_card.install()

COMMON = (
    "train.max_steps=3",
    "lora.rank=4",
    "data.options.count=2",
    "data.options.validation=1",
    "sample.count=0",
    "logging.every=100",
)
FLOAT32 = ("train.precision=float32", "dtype=float32")
ROPE = "denoiser.use=qwen-per-sample-rope"
CHECKPOINTS = "train.gradient_checkpointing=true"
STREAMED = (CHECKPOINTS, "denoiser.resident_blocks=1")

RUNS: dict[str, tuple[str, ...]] = {
    "bfloat16": (),
    "float32": FLOAT32,
    "bfloat16, checkpointing": (CHECKPOINTS,),
    "float32, checkpointing": (*FLOAT32, CHECKPOINTS),
    "bfloat16, streamed": STREAMED,
    "float32, streamed": (*FLOAT32, *STREAMED),
    "bfloat16, streamed, inputs offloaded": (*STREAMED, "train.offload_inputs=true"),
    "per-sample RoPE, bfloat16": (ROPE,),
    "per-sample RoPE, float32": (ROPE, *FLOAT32),
    "per-sample RoPE, bfloat16, checkpointing": (ROPE, CHECKPOINTS),
    "per-sample RoPE, bfloat16, streamed": (ROPE, *STREAMED),
    "batch of two, accumulated": ("train.batch_size=2", "train.gradient_accumulation=2", CHECKPOINTS),
    "float32 weights, bfloat16 products": ("dtype=float32",),
    "DoRA, average": ("lora.dora=true", "train.ema_decay=0.9", CHECKPOINTS),
    "quantised": ("denoiser.quantise.use=quanto", CHECKPOINTS),
    "full": ("train.mode=full", CHECKPOINTS),
}
IN_CI = (
    "bfloat16, streamed, inputs offloaded",
    "per-sample RoPE, bfloat16, checkpointing",
    "quantised",
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four blocks, whose pictures are large beside its weights, as those of the published model are."""
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-forecast"), layers=4)
    sizes = {"recipe": {"min_area": 192 * 192, "max_area": 192 * 192, "multiple": 16, "side": 192}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """Position tables that an earlier test left on the card would be missing in what is measured."""
    with without_tables():
        yield


@pytest.fixture(autouse=True)
def ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_is_ampere", lambda device: device.type == "card")


def peak_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> list[int]:
    """Have the peaks of the card measured during the calls of a function, from the given one on."""
    real: Callable[..., Any] = getattr(module, name)
    peaks: list[int] = []

    def measured(*args: Any, **kwargs: Any) -> Any:
        METER.reset_peak(0)
        result = real(*args, **kwargs)
        peaks.append(METER.peak[0])
        return result

    monkeypatch.setattr(module, name, measured)
    return peaks


@pytest.mark.parametrize("name", tiered(RUNS, slow=IN_CI))
def test_the_peak_of_a_step_is_forecast_within_a_tenth_besides_the_weights(
    name: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    gc.collect()  # what earlier tests left in circles
    before = METER.now[0]
    values = {"model": str(model), "output": str(tmp_path / "run"), "device": "card"}
    config = qframe.load_config(family="qwen-edit", values=values, overrides=[*COMMON, *RUNS[name]])
    trainer = Trainer(config)
    (stages,) = forecast_training(trainer.composition, trainer.inputs, fitted_size, samples=False).needs.values()
    parts = stages["training"]
    weights = sum(size for part, size in parts.items() if part.startswith("denoiser"))
    peaks = peak_of(monkeypatch, loop, "optimizer_step", 2)
    trainer.fit()
    measured, forecast = peaks[-1] - before - weights, sum(parts.values()) - weights
    record_property("measured", measured)
    record_property("forecast", forecast)
    sys.stderr.write(f"{name}: measured {measured:,}, forecast {forecast:,}, {forecast / measured - 1:+.1%}\n")
    assert abs(forecast / measured - 1) < 0.1
