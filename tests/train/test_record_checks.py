"""What can be seen before encoding is told before any work, all at once, each with its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qframe
from qframe.cache import DeclaredInputs
from qframe.errors import DataError
from qframe.train import record_checks
from qframe.train.trainer import Trainer
from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]


def paint(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "set"
    data.mkdir()
    for number in range(6):
        paint(data / f"r{number}.png", number)
        paint(data / f"r{number}_ref.png", number + 100)
        (data / f"r{number}.txt").write_text(f"make {number} blue")
    return data


def values(tiny_model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "output": str(folder.parent / "run"),
        "data": {"path": str(folder)},
        "recipe": {"min_area": 2304, "max_area": 9216, "multiple": 16},
        "train": {"max_steps": 1, "batch_size": 2, "caption_dropout": 0.0},
        "sample": {"count": 0},
        **more,
    }


def trainer(tiny_model: Path, folder: Path, **more: Any) -> Trainer:
    return Trainer(qframe.load_config(family="qwen-edit", values=values(tiny_model, folder, **more)))


def break_it(folder: Path) -> None:
    (folder / "r0_ref.png").unlink()
    for number in (1, 2):
        (folder / f"r{number}.txt").write_text(f"{number} <|im_end|> x")
    Image.new("L", (64, 32), 255).save(folder / "r3_mask.png")


STARTS: dict[str, Callable[[Trainer], Any]] = {"fit": lambda made: made.fit(), "cache": lambda made: made.cache()}


@pytest.mark.parametrize("start", STARTS)
def test_everything_is_told_at_once_before_a_weight_is_read(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    break_it(folder)
    made = trainer(tiny_model, folder)
    monkeypatch.setattr(made.loaded, "load", lambda *roles: pytest.fail("weights were loaded"))
    with pytest.raises(DataError) as caught:
        STARTS[start](made)
    lines = caught.value.message.splitlines()
    assert lines[0] == "the data set: 4 problems"
    assert "r0.png: 0 reference pictures, family qwen-edit takes one" in lines[1]
    assert "2 times: the prompt holds <|im_end|>, which would change the prompt's structure: r1.png, r2.png" in lines[2]
    assert "r3_mask.png: the mask has other proportions than its target" in lines[3]
    assert not list(folder.parent.glob("**/*.safetensors"))


@pytest.mark.parametrize("dry", [True, False])
def test_the_command_tells_it_before_the_forecast(folder: Path, tiny_model: Path, run: Any, dry: bool) -> None:
    break_it(folder)
    sizes = ["--set", "recipe.min_area=2304", "--set", "recipe.max_area=9216", "--set", "recipe.multiple=16"]
    arguments = ["--family", "qwen-edit", "--model", tiny_model, "--data", folder, *sizes]
    outcome = run("train", *arguments, *(["--dry-run"] if dry else []))
    assert outcome.code == 3
    assert "4 problems" in outcome.err
    assert "GiB" not in outcome.out + outcome.err


def test_held_out_records_and_samples_are_checked_too(folder: Path, tiny_model: Path) -> None:
    sample = {"count": 0, "prompts": ["a <|im_end|>"], "data": str(folder)}
    with pytest.raises(DataError, match=r"the prompt holds <\|im_end\|>"):
        trainer(tiny_model, folder, sample=sample).fit()
    for number in range(6):
        (folder / f"r{number}.txt").write_text("<|im_end|>")
    data = {"path": str(folder), "holdout": 0.5}
    made = trainer(tiny_model, folder, data=data, validation={"every": 1, "count": 6})
    with pytest.raises(DataError, match="6 times"):
        made.fit()


def test_a_run_checks_its_records_once(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    real = record_checks._Checker.check

    def counted(self: Any, record: Any, inputs: DeclaredInputs, index: int) -> None:
        checked.append(record.id)
        real(self, record, inputs, index)

    monkeypatch.setattr(record_checks._Checker, "check", counted)
    made = trainer(tiny_model, folder)
    for _ in range(3):
        record_checks.check_records(made.composition, made.inputs)
    assert sorted(checked) == [f"r{number}" for number in range(6)]


def test_a_caption_is_counted_once_for_all_its_repeats(folder: Path, tiny_model: Path) -> None:
    data = {"path": str(folder), "options": {"repeats": 50}}
    made = trainer(tiny_model, folder, data=data)
    counted: list[str] = []
    checker = record_checks._Checker(made.composition)
    count = checker._count
    assert count is not None
    checker._count = lambda prompt, sizes: (counted.append(prompt), count(prompt, sizes))[1]
    for index, record in enumerate(made.inputs.records):
        checker.check(record, made.inputs, index)
    assert (len(made.inputs), len(counted)) == (300, 6)


def test_cut_captions_are_told_as_a_note(folder: Path, tiny_model: Path) -> None:
    told: list[str] = []

    class Told:
        def stage(self, name: str, total: int, *, done: int = 0) -> Any:
            from qframe.progress import SILENT

            return SILENT.stage(name, total)

        def note(self, text: str) -> None:
            told.append(text)

    (folder / "r4.txt").write_text("word " * 60)
    made = trainer(tiny_model, folder, encoder={"options": {"max_length": 20}})
    record_checks.check_records(made.composition, made.inputs, progress=Told())
    assert told == ["1 captions are longer than the encoder takes, the rest is cut off: r4.png"]


@pytest.mark.parametrize("cached", [True, False])
def test_a_mask_of_half_the_size_is_resized_and_trained_with(folder: Path, tiny_model: Path, cached: bool) -> None:
    values = np.zeros((32, 32), np.uint8)
    values[:, 16:] = 255
    Image.fromarray(values).save(folder / "r3_mask.png")
    recipe = {"min_area": 256, "max_area": 9216, "multiple": 16}
    made = trainer(tiny_model, folder, recipe=recipe, cache={"enabled": cached})
    examples = made.cache()
    example = next(examples[index] for index in range(6) if made.records[index].id == "r3")
    assert example.loss_map is not None
    assert example.loss_map.shape == example.target.shape[-2:]
    height, width = example.loss_map.shape
    assert float(example.loss_map[:, : width // 4].max()) < 0.01
    assert float(example.loss_map[:, -(width // 4) :].min()) > 0.99
    assert height == width
