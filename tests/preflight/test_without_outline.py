"""A denoiser that cannot run on shapes has no estimate of memory, which is said, and everything else goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from qframe.compose import compose
from qframe.config import load_config
from qframe.preflight.outlook import sampling_outlook
from qframe.train.trainer import Trainer
from qframe_qwen.denoiser import StockDenoiser


def without_outline(*args: Any, **named: Any) -> Any:
    raise NotImplementedError("Cannot copy out of meta tensor; no data!")


def without_values(*args: Any, **named: Any) -> Any:
    raise RuntimeError("Tensor.item() cannot be called on meta tensors")


@pytest.mark.parametrize("broken", ["outline", "velocity", "flops"])
def test_training_and_sampling_are_forecast_without_it(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    if broken == "outline":
        monkeypatch.setattr(StockDenoiser, "outline", without_outline)
    else:
        monkeypatch.setattr(StockDenoiser, broken, without_values)
    caplog.set_level(logging.WARNING)
    values = {"device": "cpu", "output": str(tmp_path / "run")}
    config = load_config(family="qwen-image", values=values)
    forecast = sampling_outlook(compose(config)).forecast
    if broken == "velocity":
        assert any("Tensor.item()" in why for why in forecast.unknown.values())
    trainer = Trainer(config)
    assert trainer.outlook is not None
    told = [record.message for record in caplog.records if "the denoiser has no outline" in record.message]
    assert len(told) <= 2 * (broken == "outline"), "once for each command"
    assert bool(told) == (broken == "outline")
