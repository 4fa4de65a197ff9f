"""Checkpoints as files: damage is found wherever it is, and a reader may look while they come and go."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "state.json: cannot be read"),
        ("[" * 5000, "state.json: cannot be read"),
        ("[1]", "written by another version"),
        ({"step": "two"}, "its step is not what"),
        ({"step": -1}, "its step is not what"),
        ({"made_of": {"codec": 3}}, "its made_of is not what"),
        ({"processes": 0}, "its processes is not what"),
        ({"optimizer": None}, "its optimizer is not what"),
    ],
)
def test_a_state_that_is_not_ours_is_named(tmp_path: Path, content: str | dict[str, object], told: str) -> None:
    saved = save(tmp_path, new_state(), steps=1)
    file = saved / "state.json"
    file.write_text(content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content))
    with pytest.raises(WeightsError, match=told):
        restore(saved, new_state())


@pytest.mark.parametrize("name", ["0.state.0.exp_avg", "0.state.1.exp_avg_sq", "0.state.1.step"])
@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(())])
def test_moments_that_cannot_be_those_of_their_parameters_are_refused(
    tmp_path: Path, name: str, wrong: torch.Tensor
) -> None:
    if name.endswith("step") and wrong.shape == ():
        wrong = wrong.to(torch.float8_e4m3fn)
    saved = save(tmp_path, new_state(), steps=1)
    file = saved / "optimizer.safetensors"
    save_file(load_file(file) | {name: wrong}, file)
    with pytest.raises(WeightsError, match="its optimizer's state is not that of this run's optimizer"):
        restore(saved, new_state())


def test_weights_of_another_dtype_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    saved = save(tmp_path, new_state(), steps=1)
    file = saved / "weights.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(WeightsError, match=r"has dtype torch\.int8 in the checkpoint, torch\.float32 in this run"):
        restore(saved, new_state())


def test_a_manifest_that_names_no_possible_file_is_a_problem(tmp_path: Path) -> None:
    saved = save(tmp_path, new_state())
    manifest = saved / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["\ud800"] = listed["files"].pop("state.json")
    manifest.write_text(json.dumps(listed))
    assert "surrogates not allowed" in verify_folder(saved)[0]


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
