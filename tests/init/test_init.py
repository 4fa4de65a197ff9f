"""`qframe init`: what it finds in layouts of other trainers, what it writes, and that it never overwrites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qframe
from qframe.data.choose import open_source
from qframe.plugins.registry import load_registry
from qframe_init import command
from tests.cli.conftest import Run


def paint(path: Path, seed: int, alpha: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (64, 64, 4 if alpha else 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def pairs(root: Path, target: str = "target", control: str | None = "control", count: int = 3) -> None:
    for number in range(count):
        paint(root / target / f"{number}.png", number)
        (root / target / f"{number}.txt").write_text(f"make it {number}")
        if control is not None:
            paint(root / control / f"{number}.png", number + 100)


def loads(file: str = "run.toml") -> tuple[str, int, list[int]]:
    """The family of a configuration, its number of records, and how many references each has."""
    config = qframe.load_config(file)
    records = open_source(config, load_registry()).records()
    return config.family, len(records), [len(record.references) for record in records]


def test_a_pair_of_folders_becomes_a_configuration_that_loads(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data")
    outcome = run("init", "data", "--trigger", "sks")
    assert outcome.code == 0, outcome.err
    for said in (
        "3 records in data",
        "references: 3 with 1",
        "task: qwen-edit, as the data set suggests",
        "Memory: about",
    ):
        assert said in outcome.out
    assert "Disk: the cache about" in outcome.out
    assert "Time: " in outcome.out
    assert "qframe train --config run.toml" in outcome.out
    text = Path("run.toml").read_text()
    assert "#   references: 3 with 1" in text
    assert "#   Memory: about" in text
    assert loads() == ("qwen-edit", 3, [1, 1, 1])
    assert qframe.load_config("run.toml").data.options.trigger == "sks"


def test_a_folder_of_targets_finds_the_folder_of_references_beside_it(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data", target="images", control="controls")
    assert run("init", "data/images", "--no-estimate").code == 0
    assert loads() == ("qwen-edit", 3, [1, 1, 1])


def test_a_folder_with_a_table_is_read_by_its_table(run: Run, tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / "data" / f"{number}.png", number)
    rows = [{"file_name": f"{number}.png", "text": "x"} for number in range(2)]
    (tmp_path / "data" / "metadata_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("init", "data", "--no-estimate").code == 0
    assert loads() == ("qwen-image", 2, [0, 0])
    (tmp_path / "data" / "metadata.csv").write_text("image,prompt\n0.png,x\n")
    outcome = run("init", "data", "--output", "two.toml")
    assert (outcome.code, "may each hold the captions" in outcome.err) == (3, True)


def test_several_references_suggest_another_family(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data", control="control1")
    for number in range(3):
        paint(tmp_path / "data" / "control2" / f"{number}.png", number + 200)
    assert run("init", "data", "--no-estimate").code == 0
    assert loads() == ("qwen-edit-plus", 3, [2, 2, 2])


def test_records_with_and_without_a_reference_are_mixed(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data")
    (tmp_path / "data" / "control" / "1.png").unlink()
    assert run("init", "data", "--no-estimate").code == 0
    config = qframe.load_config("run.toml")
    assert config.recipe.references == "optional"


def test_a_file_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data", control=None)
    Path("run.toml").write_text("mine")
    outcome = run("init", "data")
    assert (outcome.code, "there is a file already" in outcome.err) == (2, True)
    assert Path("run.toml").read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_overwritten_either(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path / "data", control=None)
    monkeypatch.setattr(command, "_toml", lambda *parts: [Path("run.toml").write_text("mine"), "new"][1])
    outcome = run("init", "data", "--no-estimate")
    assert (outcome.code, Path("run.toml").read_text()) == (2, "mine")


def test_pictures_without_captions_need_a_prompt_or_a_trigger(run: Run, tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / "data" / f"{number}.png", number, alpha=True)
    outcome = run("init", "data", "--no-estimate")
    assert (outcome.code, "no picture has a caption" in outcome.err) == (3, True)
    assert "some targets are transparent; data.options.alpha_mask" in outcome.out
    assert not Path("run.toml").exists()
    assert run("init", "data", "--no-estimate", "--trigger", "sks").code == 0
    assert [record.prompt for record in open_source(qframe.load_config("run.toml"), load_registry()).records()] == [
        "sks",
        "sks",
    ]


def test_problems_are_said_and_nothing_to_train_on_is_refused(run: Run, tmp_path: Path) -> None:
    pairs(tmp_path / "data", control=None)
    (tmp_path / "data" / "target" / "1.txt").unlink()
    outcome = run("init", "data")
    assert outcome.code == 0
    assert "problem: target/1.png: there is no caption" in outcome.out
    assert "were not estimated" in outcome.out
    (tmp_path / "empty").mkdir()
    assert run("init", "empty", "--output", "e.toml").code == 3
    assert run("init", "nowhere", "--output", "e.toml").code == 3
    assert run("init", "data", "--family", "qwen-edti", "--output", "e.toml").code == 2
    assert not Path("e.toml").exists()


def test_in_a_terminal_it_asks_for_what_no_flag_says(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path / "data", control=None)
    answers = iter(["qwen-image", "models/mine", "sks"])
    asked: list[str] = []
    monkeypatch.setattr(command, "_in_terminal", lambda: True)
    monkeypatch.setattr(command.click, "prompt", lambda text, **more: (asked.append(text), next(answers))[1])
    assert run("init", "data", "--no-estimate").code == 0
    assert [text.split(" ")[0] for text in asked] == ["task", "model", "trigger"]
    config = qframe.load_config("run.toml")
    assert (config.model, config.data.options.trigger, config.train.max_steps) == ("models/mine", "sks", 500)
