"""train on a random model and the embedded data set, a few steps each."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from qframe.cli.training import next_steps
from qframe.config import load_config
from tests.cli.conftest import Outcome, Run
from tests.pixels import pixels

SMALL = [
    "train.max_steps=3",
    "data.options.count=4",
    "data.options.validation=2",
    "sample.num_inference_steps=2",
]
TINY = "the tiny model's folder"
OVERRIDES = [text for override in SMALL for text in ("--set", override)]


def train(run: Run, model: Path, *arguments: str) -> Outcome:
    return run("train", "--family", "qwen-edit", "--model", model, "--output", "runs/a", *OVERRIDES, *arguments)


def test_training_says_what_is_used_and_where_the_results_are(run: Run, tiny_model: Path) -> None:
    outcome = train(run, tiny_model)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "Using the embedded data set 'shapes'; --data would choose your own."
    assert lines[1] == f"Weights: {tiny_model}, licence Apache-2.0 (as family 'qwen-edit' declares)."
    assert any(line.startswith("training 3/3, ") and "loss" in line for line in lines)
    assert lines[-5:-2] == [
        "weights   runs/a/lora.safetensors",
        "pictures  runs/a/samples/sheet.png",
        "a page    qframe report runs/a",
    ]
    assert lines[-1] == (
        "longer    qframe train --config runs/a/config.toml --output runs/a --resume --set train.max_steps=6"
    )
    assert lines[-2].startswith(
        f"try it    qframe sample --family qwen-edit --model {tiny_model} --lora runs/a --image runs/a/"
    )
    pasted = run(*shlex.split(lines[-2].removeprefix("try it    qframe ")), "--steps", "1", "--quiet")
    assert (pasted.code, pasted.out, Path("out.png").exists()) == (0, "", True), pasted.err
    assert Path("runs/a/lora.safetensors").exists()
    assert Image.open("runs/a/samples/sheet.png").size > (64, 64)
    report = run("report", "runs/a")
    assert (report.code, report.out) == (0, "runs/a/report.html\n")
    page = Path("runs/a/report.html").read_text()
    for words in ("3 of 3, finished", ">train.max_steps</code></th><td><code>3</code></td><td>--set<", "Apache-2.0"):
        assert words in page
    assert "earlier version" not in page


def test_commands_to_paste_are_quoted_and_name_what_a_family_needs(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    commands = dict(next_steps(load_config(family="qwen-inpaint", values={"model": "a b"}), folder))
    assert shlex.split(commands["longer"])[:4] == ["qframe", "train", "--config", str(folder / "config.toml")]
    rest = ["--image", "IMAGE.png", "--mask", "MASK.png", "--prompt", "...", "--output", "out.png"]
    assert shlex.split(commands["try it"])[4:] == ["--model", "a b", "--lora", str(folder), *rest]
    assert "try it" not in dict(next_steps(load_config(family="qwen-edit", overrides=["train.mode=full"]), folder))


def test_training_refuses_a_folder_in_use_and_resumes_on_demand(run: Run, tiny_model: Path) -> None:
    assert train(run, tiny_model).code == 0
    again = train(run, tiny_model)
    assert again.code == 4
    assert "--resume" in again.err
    resumed = train(run, tiny_model, "--resume", "--set", "train.max_steps=5")
    assert resumed.code == 0, resumed.err
    steps = [json.loads(line)["step"] for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    sessions = [json.loads(line) for line in Path("runs/a/sessions.jsonl").read_text().splitlines()]
    assert [session["resumed_from"] for session in sessions] == [None, 3]
    assert any("train.max_steps was 3, is 5" in line for line in sessions[1]["changes"])
    assert (sessions[0]["sources"]["train.max_steps"], sessions[0]["sources"]["model"]) == ("--set", "argument")


def test_trained_lora_changes_what_is_sampled(run: Run, tiny_model: Path) -> None:
    assert train(run, tiny_model, "--set", "train.learning_rate=0.1").code == 0
    request = ("sample", "--family", "qwen-image", "--model", tiny_model, "--prompt", "x", "--size", "64x64")
    for name, lora in {
        "without": (),
        "none": ("--lora", "runs/a/lora.safetensors:0"),
        "with": ("--lora", "runs/a/lora.safetensors"),
    }.items():
        outcome = run(*request, "--steps", 2, *lora, "--output", f"{name}.png")
        assert outcome.code == 0, outcome.err
    pictures = {name: pixels(f"{name}.png") for name in ("without", "none", "with")}
    assert pictures["none"] == pictures["without"] != pictures["with"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "--family", "qwen-edit", "--model", TINY, "--data", "./nowhere"), 3, "nowhere does not exist"),
        (("train", "--family", "qwen-edit", "--model", "./nowhere"), 4, "there is no such folder"),
        (("train", "--family", "qwen-edit", "--model", TINY, "--resume"), 4, "no run of 'qwen-edit' to resume"),
        (("train", "--family", "qwen-edit", "--config", "none.toml"), 2, "none.toml: cannot be read"),
        (("train", "--family", "qwen-edit", "--model", TINY, "--output", "file"), 2, "file is a file, expected a"),
        (("train", "--family", "qwen-edit", "--model", TINY, "--output", "file/run"), 2, "file is a file, expected a"),
    ],
)
def test_bad_input_is_named(run: Run, tiny_model: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("file").write_text("no folder")
    outcome = run(*(tiny_model if argument == TINY else argument for argument in arguments))
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
