"""Streamed weights on the imitated card: results equal those of resident weights to the bit, and copies are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import imitated_card
from tests.on_card.card_training import PACKED, lora, model, ragged_calls, train

imitated_card.install()

__all__ = ["model", "ragged_calls"]  # fixtures

STREAMED = ("denoiser.resident_blocks=0", "encoder.resident_blocks=0")
RECOMPUTED = ("train.gradient_checkpointing=true", "sample.count=1")


@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
def test_streamed_training_equals_resident_training_to_the_bit(denoiser: str, tmp_path: Path, model: Path) -> None:
    use = (f"denoiser.use={denoiser}", *RECOMPUTED)
    found = train("card", "qwen-edit", tmp_path / "streamed", model, *use, *STREAMED)
    wanted = train("card", "qwen-edit", tmp_path / "resident", model, *use)
    assert found == wanted
    ours, theirs = lora(tmp_path / "streamed"), lora(tmp_path / "resident")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
