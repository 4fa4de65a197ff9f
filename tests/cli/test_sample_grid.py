"""`qframe sample --grid`: every LoRA alone, one load, and a labelled sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qframe.cli import sample_grid
from qframe.cli.sample_grid import columns_of
from qframe.errors import ConfigError
from qframe.pictures import contact_sheet
from qframe.sample.pipeline import Pipeline
from tests.cli.conftest import Run
from tests.pixels import pixels
from tests.qwen import tiny

REQUEST = ("--steps", 1, "--size", "64x32", "--seed", 3)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per load of a model."""
    from qframe.sample import loading

    found: list[str] = []
    real = loading.assemble

    def counted(*arguments: Any) -> Pipeline:
        found.append("load")
        return real(*arguments)

    monkeypatch.setattr(loading, "assemble", counted)
    return found


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """The headings and the labels of each sheet."""
    found: list[tuple[list[str], list[str]]] = []
    real = contact_sheet.contact_sheet

    def noted(rows: Any, columns: Any) -> Image.Image:
        found.append((list(columns), [row.label for row in rows]))
        return real(rows, columns)

    monkeypatch.setattr(contact_sheet, "contact_sheet", noted)
    return found


def test_a_picture_of_the_grid_is_that_of_its_lora_alone(
    run: Run, tiny_model: Path, loads: list[str], sheets: list[tuple[list[str], list[str]]]
) -> None:
    for name in ("a", "b"):
        tiny.tiny_lora(tiny_model, Path(f"{name}.safetensors"), seed=ord(name))
    model = ("sample", "--family", "qwen-image", "--model", tiny_model, *REQUEST)
    prompts = ("--prompt", "x", "--prompt", "y")
    loras = ("--lora", "a.safetensors", "--lora", "b.safetensors:0.5")
    made = run(*model, *prompts, *loras, "--output", "out.png", "--grid", "sheet.png")
    assert (made.code, made.out.splitlines()[-1]) == (0, "sheet     sheet.png"), made.err
    assert len(loads) == 1
    assert sheets == [(["a.safetensors", "b.safetensors:0.5"], ["x", "y"])]
    assert Image.open("sheet.png").width > 240 + 2 * 128
    for name, lora in (("a.safetensors", "a.safetensors"), ("b.safetensors-0.5", "b.safetensors:0.5")):
        assert run(*model, *prompts, "--lora", lora, "--output", f"{name}.png").code == 0
        assert [pixels(f"out-{name}-{i}.png") for i in (1, 2)] == [pixels(f"{name}-{i}.png") for i in (1, 2)]
    assert pixels("out-a.safetensors-1.png") != pixels("out-b.safetensors-0.5-1.png")


def test_a_grid_of_a_batch_makes_only_what_is_missing(
    run: Run, tiny_model: Path, loads: list[str], sheets: list[tuple[list[str], list[str]]]
) -> None:
    for name in ("a", "b"):
        tiny.tiny_lora(tiny_model, Path(f"{name}.safetensors"), seed=ord(name))
    lines = [{"prompt": text, "steps": 1, "size": "64x32", "id": text} for text in ("x", "y")]
    Path("r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loras = ("--lora", "a.safetensors", "--lora", "b.safetensors", "--grid", "sheet.png")
    command = (
        "sample",
        "--family",
        "qwen-image",
        "--model",
        tiny_model,
        "--batch",
        "r.jsonl",
        "--output",
        "out",
        *loras,
    )
    assert run(*command).code == 0
    kept = Path("out/a.safetensors/x.png").stat().st_mtime_ns
    Path("out/b.safetensors/y.png").unlink()
    again = run(*command, "--overwrite")
    assert again.code == 0, again.err
    assert "2 of 2 pictures are done already." in again.out
    assert Path("out/a.safetensors/x.png").stat().st_mtime_ns == kept
    assert Path("out/b.safetensors/y.png").exists()
    assert sheets[0] == sheets[1] == (["a.safetensors", "b.safetensors"], ["x", "y"])
    assert len(loads) == 2


def test_wrong_grids_are_refused_before_a_model_is_loaded(run: Run, tiny_model: Path, loads: list[str]) -> None:
    model = ("sample", "--family", "qwen-image", "--model", tiny_model, "--prompt", "x", "--output", "o.png")
    assert run(*model, "--grid", "sheet.png").code == 2
    assert (
        "must end in one of" in run(*model, "--lora", "a", "--grid", "sheet").err + run(*model, "--grid", "s.txt").err
    )
    Path("there.png").write_bytes(b"x")
    assert "exists already" in run(*model, "--lora", "a", "--grid", "there.png").err
    assert loads == []


def test_columns_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_grid, "find_loras", lambda given: dict(given))
    given = ["runs/a@500", "runs/a@best:0.5", "runs a@500", "../runs-a@500"]
    found = columns_of(given, tmp_path / "s.png", overwrite=False)
    assert [column.label for column in found] == given
    assert [column.name for column in found] == ["1-runs-a@500", "runs-a@best-0.5", "3-runs-a@500", "4-runs-a@500"]
    assert found[1].loras == {Path("runs/a@best"): 0.5}
    with pytest.raises(ConfigError, match="is given twice"):
        columns_of(["a", "a"], tmp_path / "s.png", overwrite=False)
