"""`qframe demo` on a random model, a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.test_train import OVERRIDES


def test_demo_ends_by_naming_the_pictures(run: Run, tiny_model: Path) -> None:
    outcome = run("demo", "--set", f"model={tiny_model}", *OVERRIDES)
    assert outcome.code == 0, outcome.err
    _, _, end = outcome.out.partition("Open these pictures:\n")
    files = [line.split()[0] for line in end.splitlines()[:4]]
    assert files == [
        f"runs/qwen-edit/{name}.png" for name in ("demo/input", "demo/without", "demo/with", "samples/sheet")
    ]
    assert all(Image.open(file).size for file in files)
    assert end.splitlines()[-2:] == [
        "The LoRA: runs/qwen-edit/lora.safetensors",
        "A page about the run: qframe report runs/qwen-edit",
    ]


def test_demo_needs_no_validation_records(run: Run, tiny_model: Path) -> None:
    outcome = run("demo", "--set", f"model={tiny_model}", *OVERRIDES, "--set", "data.options.validation=0")
    assert outcome.code == 0, outcome.err
    assert Path("runs/qwen-edit/demo/with.png").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.mode=full", "train.mode is 'full', and the demo samples with a LoRA"),
        ("train.max_steps=0", "train.max_steps (--set): expected a value >= 1, got 0"),
    ],
)
def test_what_the_demo_cannot_do_ends_with_2(run: Run, override: str, message: str) -> None:
    outcome = run("demo", "--set", override)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
