"""Streamed weights on the imitated card: results equal those of resident weights to the bit, and copies are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qframe.compose.streaming import network
from qframe.compose.streaming.lane import Lane, Slot
from tests import imitated_card
from tests.on_card.card_training import PACKED, lora, ragged_calls, train
from tests.qwen import tiny

imitated_card.install()

__all__ = ["ragged_calls"]  # a fixture

LAYERS = 5
RECOMPUTED = ("train.gradient_checkpointing=true", "sample.count=1")
STREAMED = ("denoiser.resident_blocks=0", "encoder.resident_blocks=0")
ACCUMULATED = ("train.gradient_accumulation=2", "train.ema_decay=0.9", "validation.every=1")
BOTH = ("qwen-image", "qwen-per-sample-rope")

FAST = {
    "stock": ("qwen-edit", (), STREAMED),
    "packed, some resident, inputs offloaded": (
        "qwen-edit",
        PACKED,
        ("denoiser.resident_blocks=2", "encoder.resident_blocks=1", "train.offload_inputs=true"),
    ),
}
RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "accumulation, average, validation": ("qwen-edit", ACCUMULATED, STREAMED),
    "per-sample RoPE, accumulation, average, validation": (
        "qwen-edit",
        ("denoiser.use=qwen-per-sample-rope", *ACCUMULATED),
        STREAMED,
    ),
    "DoRA": ("qwen-edit", ("lora.dora=true",), STREAMED),
    "DoRA, per-sample RoPE": ("qwen-edit", ("lora.dora=true", "denoiser.use=qwen-per-sample-rope"), STREAMED),
    "dropout": ("qwen-edit", ("lora.dropout=0.3",), STREAMED),
    "adapters outside of blocks": ("qwen-edit", ('lora.targets=["all-linear"]',), STREAMED),
    "live": ("qwen-edit", ("cache.enabled=false",), STREAMED),
    "references": ("qwen-edit-plus", (), STREAMED),
    "many references, packed": ("qwen-edit-plus", (*PACKED, "train.tokens_per_batch=480"), STREAMED),
    "inpainting": ("qwen-inpaint", (), STREAMED),
    "edit inside a mask": ("qwen-edit-inpaint", (), STREAMED),
    "float32": ("qwen-edit", ("dtype=float32", "train.precision=float32"), STREAMED),
    "float32 weights in bfloat16": ("qwen-edit", ("dtype=float32",), STREAMED),
    "inputs offloaded": ("qwen-edit", (), ("train.offload_inputs=true",)),
    "inputs offloaded, per-sample RoPE": (
        "qwen-edit",
        ("denoiser.use=qwen-per-sample-rope",),
        ("train.offload_inputs=true",),
    ),
    "8 bits": ("qwen-edit", ("denoiser.quantise.use=quanto", "encoder.quantise.use=quanto"), STREAMED),
    "8 bits, packed": ("qwen-edit", ("denoiser.quantise.use=quanto", *PACKED), STREAMED),
    "all but one resident": ("qwen-edit", (), ("denoiser.resident_blocks=4", "encoder.resident_blocks=3")),
    "more resident than there are": ("qwen-edit", (), ("denoiser.resident_blocks=9", "encoder.resident_blocks=9")),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-streamed"), layers=LAYERS)
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The list gets the number of blocks of the network and of the block, for each copy that is requested."""
    found: list[tuple[int, int]] = []
    copy = Lane.copy

    def counted(lane: Lane, weights: Any, slot: Slot) -> None:
        assert slot.holds is not None
        found.append((id(lane), slot.holds))
        copy(lane, weights, slot)

    monkeypatch.setattr(Lane, "copy", counted)
    return found


def equal_runs(folder: Path, model: Path, family: str, settings: tuple[str, ...], streamed: tuple[str, ...]) -> None:
    """Train twice, streamed and resident, and compare losses, norms of gradients and the LoRA to the bit."""
    settings = (*RECOMPUTED, *settings)
    found = train("card", family, folder / "streamed", model, *settings, *streamed)
    wanted = train("card", family, folder / "resident", model, *settings)
    assert found == wanted
    ours, theirs = lora(folder / "streamed"), lora(folder / "resident")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", FAST)
def test_streamed_training_equals_resident_training(
    name: str, tmp_path: Path, model: Path, requested: list[tuple[int, int]]
) -> None:
    equal_runs(tmp_path, model, *FAST[name])
    assert len({lane for lane, _ in requested}) == 2, "denoiser and encoder"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_streamed_training_equals_resident_training_with_every_option(name: str, tmp_path: Path, model: Path) -> None:
    equal_runs(tmp_path, model, *RUNS[name])


@pytest.mark.slow
@pytest.mark.parametrize("denoiser", BOTH)
def test_weights_that_stay_mapped_train_like_resident_ones(
    denoiser: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "host_room", lambda: 0)
    equal_runs(tmp_path, model, "qwen-edit", (f"denoiser.use={denoiser}",), STREAMED)


@pytest.mark.slow
@pytest.mark.parametrize("denoiser", BOTH)
def test_a_streamed_run_that_was_stopped_ends_as_a_resident_one_that_was_not(
    denoiser: str, tmp_path: Path, model: Path
) -> None:
    settings = (*RECOMPUTED, f"denoiser.use={denoiser}", "train.max_steps=3", "train.checkpoint_every=1")
    train("card", "qwen-edit", tmp_path / "whole", model, *settings)
    train("card", "qwen-edit", tmp_path / "parts", model, *settings, *STREAMED, "train.max_steps=1")
    train("card", "qwen-edit", tmp_path / "parts", model, *settings, *STREAMED, resume="latest")
    ours, theirs = lora(tmp_path / "parts"), lora(tmp_path / "whole")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
