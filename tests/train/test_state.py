"""Checkpoints as files: damage is found wherever it is, and a reader may look while they come and go."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from qframe.config.schema import TrainConfig
from qframe.errors import WeightsError
from qframe.files.storage import remove_published, verify_folder
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.state import TrainingState, find_checkpoint, restore, save_checkpoint


def new_state(ema_decay: float = 0.9) -> TrainingState:
    torch.manual_seed(0)
    parameters = {"layer": nn.Parameter(torch.randn(4, 3)), "bias": nn.Parameter(torch.randn(3))}
    average = WeightAverage(parameters, ema_decay) if ema_decay else None
    return TrainingState(parameters, Optimizers(parameters, TrainConfig(), "blocks"), average)


def save(run: Path, state: TrainingState, *, steps: int = 0) -> Path:
    for _ in range(steps):
        for parameter in state.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        state.optimizers.step(state.step)
        state.step += 1
    return save_checkpoint(run, state, config="family = 'x'\n", about={"data": "d"}, keep=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run"), new_state(), steps=2)


@pytest.mark.parametrize("flips", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_checkpoint_is_found(checkpoint: Path, flips: int) -> None:
    generator = random.Random(flips)
    files = sorted(checkpoint.iterdir())
    assert len(files) == 6
    for number in range(flips):
        file = files[number % len(files)]
        content = file.read_bytes()
        place = generator.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            assert verify_folder(checkpoint), f"bit {place} of {file.name}"
        finally:
            file.write_bytes(content)
    assert verify_folder(checkpoint) == []


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_every_truncation_of_a_checkpoint_is_found(checkpoint: Path, every: int) -> None:
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for length in range(len(content) - 1, -1, -every):
            file.write_bytes(content[:length])
            assert verify_folder(checkpoint), f"{file.name} cut to {length} bytes"
        file.write_bytes(content)
    assert verify_folder(checkpoint) == []


@pytest.mark.parametrize("after", ["manifest.json", "weights.safetensors"])
def test_a_checkpoint_that_is_taken_away_while_it_is_read_is_a_problem_and_no_failure(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Retention of a run may delete what another process looks at."""
    folder = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, folder)
    stat = Path.stat

    def stat_and_remove(self: Path, **options: bool) -> object:
        found = stat(self, **options)
        if self.name == after and self.parent == folder:
            monkeypatch.undo()
            remove_published(folder)
        return found

    monkeypatch.setattr(Path, "stat", stat_and_remove)
    assert verify_folder(folder)


def test_a_state_without_any_step_is_saved_and_restored(tmp_path: Path) -> None:
    saved = save(tmp_path, new_state())
    other = new_state()
    with torch.no_grad():
        other.parameters["layer"].zero_()
    restore(saved, other)
    assert other.step == 0
    assert torch.equal(other.parameters["layer"], new_state().parameters["layer"])


def test_a_missing_average_is_told_by_file(tmp_path: Path) -> None:
    saved = save(tmp_path, new_state(ema_decay=0.0), steps=1)
    with pytest.raises(WeightsError, match=r"average\.safetensors: not in this checkpoint"):
        restore(saved, new_state())


def test_the_newest_sound_checkpoint_is_kept_when_newer_ones_are_damaged(tmp_path: Path) -> None:
    """Keep-last-n counts sound ones: the only good one stays, however many damaged ones are newer."""
    state = new_state()
    good = save(tmp_path, state, steps=1)
    for _ in range(3):
        newer = save(tmp_path, state, steps=2)
        (newer / "weights.safetensors").write_bytes(b"damaged")
    assert find_checkpoint(tmp_path, "latest") == good
