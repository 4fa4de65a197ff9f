"""`qframe data check`: every fault of a data set in one table, and figures that are those of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qframe
from qframe.compose import compose
from qframe.data.choose import open_source
from qframe.plugins.registry import load_registry
from qframe.train.trainer import Trainer
from qframe_data_check import check as checking
from qframe_data_check.check import check_data
from tests.cli.conftest import Outcome, Run
from tests.privileges import ordinary_user

CheckRun = Callable[..., Outcome]


def paint(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def record(folder: Path, name: str, seed: int, caption: str = "", size: tuple[int, int] = (64, 64)) -> None:
    paint(folder / f"{name}.png", seed, size)
    paint(folder / f"{name}_ref.png", seed + 1000, size)
    (folder / f"{name}.txt").write_text(caption or f"make {name} blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six records in which nothing is wrong, of two sizes."""
    for index in range(6):
        record(tmp_path / "set", f"good{index}", index, f"{'very ' * index}blue", (64, 64) if index % 2 else (96, 64))
    return tmp_path / "set"


@pytest.fixture
def check(run: Run, tiny_model: Path) -> CheckRun:
    sizes = ("--set", "recipe.min_area=2304", "--set", "recipe.max_area=9216", "--set", "recipe.multiple=16")

    def call(*arguments: object) -> Outcome:
        return run("data", "check", "--family", "qwen-edit", "--model", tiny_model, "--data", "set", *sizes, *arguments)

    return call


def test_a_data_set_without_faults_is_described(folder: Path, check: CheckRun) -> None:
    outcome = check("--set", "train.batch_size=2")
    assert outcome.code == 0, outcome.err
    assert "6 of 6 records can be used" in outcome.out
    assert "error" not in outcome.out
    assert "  64 x 64        3  ####" in outcome.out
    assert "train.batching = 'bucketed', mean of 3 batches" in outcome.out


FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "damaged": (
        lambda f: (f / "good1.png").write_bytes((f / "good1.png").read_bytes()[:900]),
        "error    picture       good1.png",
        "damaged or cut short",
    ),
    "no picture": (
        lambda f: (f / "good1_ref.png").write_bytes(b"text"),
        "error    picture       good1_ref.png",
        "not a picture of a known format",
    ),
    "empty caption": (
        lambda f: (f / "good1.txt").write_text(" \n"),
        "error    data set      good1.txt",
        "the caption is empty",
    ),
    "special token": (
        lambda f: (f / "good1.txt").write_text("a <|im_end|> b"),
        "error    prompt        good1.png",
        "holds <|im_end|>",
    ),
    "no reference": (
        lambda f: (f / "good1_ref.png").unlink(),
        "error    record        good1.png",
        "0 reference pictures, family qwen-edit takes one",
    ),
    "outside": (
        lambda f: ((f / "good1.png").rename(f.parent / "a.png"), (f / "good1.png").symlink_to("../a.png")),
        "error    data set      good1.png",
        "leads outside of set",
    ),
    "broken link": (
        lambda f: ((f / "good1.png").unlink(), (f / "good1.png").symlink_to("nowhere.png")),
        "error    data set      good1.png",
        "no such file",
    ),
    "sliver": (
        lambda f: paint(f / "good1.png", 7, (1200, 4)),
        "error    size          good1.png",
        "is too narrow",
    ),
    "sliver of a mask": (
        lambda f: Image.new("L", (1200, 4), 255).save(f / "good1_weight.png"),
        "error    size          good1_weight.png",
        "is too narrow",
    ),
    "black mask": (
        lambda f: Image.new("L", (64, 64)).save(f / "good1_weight.png"),
        "error    mask          good1_weight.png",
        "black all over",
    ),
    "mask of another shape": (
        lambda f: Image.new("L", (64, 32), 255).save(f / "good1_weight.png"),
        "error    size          good1_weight.png",
        "the mask has other proportions than its target (64 x 32 pixels, its target 64 x 64)",
    ),
    "same target": (
        lambda f: record(f, "good6", 1),
        "warning  duplicate     good6.png",
        "has the same target as an earlier record (good1.png)",
    ),
    "same question": (
        lambda f: (
            record(f, "good6", 60, (f / "good1.txt").read_text()),
            (f / "good6_ref.png").write_bytes((f / "good1_ref.png").read_bytes()),
        ),
        "warning  duplicate     good6.png",
        "has the same prompt and references as an earlier record, and another target (good1.png)",
    ),
    "another aspect ratio": (
        lambda f: paint(f / "good1_ref.png", 9, (96, 64)),
        "warning  aspect ratio  good1.png",
        "its reference has other proportions than the target (96 x 64 pixels, the target 64 x 64)",
    ),
    "tiny": (
        lambda f: (paint(f / "good1.png", 7, (8, 8)), paint(f / "good1_ref.png", 8, (8, 8))),
        "warning  enlarged      good1.png",
        "is enlarged to over 4 times its area (8 x 8 to 48 x 48 pixels)",
    ),
    "mask of half the size": (
        lambda f: Image.new("L", (32, 32), 255).save(f / "good1_weight.png"),
        "note     size          good1_weight.png",
        "the mask has another size than its target, and is resized to it (32 x 32 pixels, its target 64 x 64)",
    ),
    "a book": (
        lambda f: (f / "good1.txt").write_text("word " * 3000),
        "warning  prompt        good1.png",
        "the caption has over 1024 tokens, which cost memory and time in every step (",
    ),
    "wrongly decoded": (
        lambda f: (f / "good1.txt").write_text("caf\ufffd"),
        "warning  prompt        good1.png",
        "could not be decoded",
    ),
    "nul": (
        lambda f: (f / "good1.txt").write_bytes("a cat".encode("utf-16-le")),
        "error    data set      good1.txt",
        "it holds a NUL character",
    ),
    "usual name": (
        lambda f: ((f / "before").mkdir(), (f / "good1_ref.png").rename(f / "before" / "good1.png")),
        "note     data set      set",
        "before/ is read as the folder of references",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_its_place(folder: Path, check: CheckRun, fault: str) -> None:
    make, row, message = FAULTS[fault]
    make(folder)
    outcome = check("--json")
    (found,) = json.loads(outcome.out)["findings"]
    severity, kind, origin = (part for part in row.split("  ") if part.strip())
    assert (found["severity"], found["kind"], found["origin"]) == (severity.strip(), kind.strip(), origin.strip())
    assert message in found["message"]
    assert outcome.code == (3 if severity == "error" else 0)


def test_all_faults_stand_in_one_table(folder: Path, check: CheckRun) -> None:
    for number, fault in enumerate(("damaged", "empty caption", "black mask", "special token"), 10):
        record(folder, "good1", number)
        FAULTS[fault][0](folder)
        for path in folder.glob("good1*"):
            path.rename(path.with_name(path.name.replace("good1", f"bad{number}")))
    record(folder, "good1", 2000)
    record(folder, "again", 0, size=(96, 64))
    outcome = check()
    assert outcome.code == 3
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("error", "warning"))] == ["error"] * 4 + ["warning"]
    assert "7 of 11 records can be used" in outcome.out
    assert "error: 4 errors and 1 warning in 11 records; 7 can be used" in outcome.err


def test_one_cause_is_one_row_that_names_every_place(folder: Path, check: CheckRun) -> None:
    """Pictures that are stretched by rounding are named with their sizes, in one row."""
    for number in range(40):
        record(folder, f"small{number:02}", 100 + number, size=(56, 64))
        paint(folder / f"small{number:02}_ref.png", 200 + number, (56, 64))
    outcome = check()
    rows = [line for line in outcome.out.splitlines() if line.startswith(("error", "warning", "note"))]
    expected = "warning  stretched  80 times  is stretched by over 5 %, as its sides are rounded to multiples of 16"
    assert rows == [expected]
    places = outcome.out.splitlines()[outcome.out.splitlines().index(expected) + 1]
    assert places.startswith("         small00.png (56 x 64 to 64 x 64 pixels, 14%), small00_ref.png (")
    assert places.endswith(" and 60 more (--json lists all)")
    assert len(json.loads(check("--json").out)["findings"]) == 80


def test_forty_mistakes_with_one_cause_are_one_row(folder: Path, check: CheckRun) -> None:
    """Special tokens differ in their captions, not in their cause."""
    for number in range(40):
        record(folder, f"bad{number:02}", 100 + number, f"caption {number} <|im_end|>")
    rows = [line for line in check().out.splitlines() if line.startswith("error")]
    assert len(rows) == 1
    assert "40 times  the prompt holds <|im_end|>, which would change the prompt's structure" in rows[0]


def test_notes_are_no_warnings(folder: Path, check: CheckRun) -> None:
    FAULTS["mask of half the size"][0](folder)
    assert check("--strict").code == 0


def test_a_caption_that_is_cut_off_is_told_with_its_length(folder: Path, check: CheckRun) -> None:
    (folder / "good1.txt").write_text("word " * 60)
    outcome = check("--set", "encoder.options.max_length=20")
    assert "the caption is longer than the encoder takes, and its end is cut off (" in outcome.out


def test_several_faults_of_one_record_are_all_reported(folder: Path, check: CheckRun) -> None:
    for fault in ("black mask", "special token", "another aspect ratio"):
        FAULTS[fault][0](folder)
    found = json.loads(check("--json").out)["findings"]
    assert [finding["kind"] for finding in found] == ["mask", "prompt", "aspect ratio"]


def test_warnings_are_errors_if_one_says_so(folder: Path, check: CheckRun) -> None:
    FAULTS["tiny"][0](folder)
    assert (check().code, check("--strict").code) == (0, 3)


def test_headers_alone_pass_half_a_picture(folder: Path, check: CheckRun) -> None:
    (folder / "good1.png").unlink()
    Image.effect_noise((64, 64), 50).save(folder / "good1.jpg")
    (folder / "good1.jpg").write_bytes((folder / "good1.jpg").read_bytes()[:-500])
    assert (check("--headers").code, check().code) == (0, 3)


def test_the_sheet_shows_what_the_model_will_see(folder: Path, check: CheckRun) -> None:
    outcome = check("--sheet", "sheet.png")
    assert outcome.code == 0, outcome.err
    with Image.open("sheet.png") as sheet:
        assert sheet.height > 6 * 100
    again = check("--sheet", "sheet.png")
    assert (again.code, "there is a file already" in again.err) == (2, True)


@pytest.mark.parametrize("batching", ["bucketed", "packed", "fixed"])
def test_token_figures_are_those_that_training_logs(
    folder: Path, check: CheckRun, tiny_model: Path, batching: str
) -> None:
    settings = {"batching": batching, "batch_size": 2, "tokens_per_batch": 250, "caption_dropout": 0.0}
    arguments = [text for name, value in settings.items() for text in ("--set", f"train.{name}={value}")]
    outcome = check("--json", *arguments)
    told = json.loads(outcome.out)["tokens"]
    values = {
        "model": str(tiny_model),
        "output": "run",
        "data": {"path": "set"},
        "recipe": {"min_area": 2304, "max_area": 9216, "multiple": 16},
        "sample": {"count": 0},
        "train": {**settings, "max_steps": told["batches"], "precision": "float32"},
    }
    Trainer(qframe.load_config(family="qwen-edit", values=values)).fit()
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    valid = [line["target_tokens"] + line["reference_tokens"] + line["text_tokens"] for line in logged]
    assert sum(valid) / len(valid) == pytest.approx(told["valid"])
    assert (min(valid), max(valid)) == (told["smallest"], told["largest"])
    assert sum(line["padded_tokens"] for line in logged) / len(logged) == pytest.approx(told["padded"])
    assert sum(line["samples"] for line in logged) / len(logged) == pytest.approx(told["samples"])


def test_a_budget_that_is_too_small_is_told_with_the_largest_sample(folder: Path, check: CheckRun) -> None:
    outcome = check("--set", "train.batching=packed", "--set", "train.tokens_per_batch=20")
    assert outcome.code == 0
    assert "train.tokens_per_batch is 20, and 6 of 6 examples are larger" in outcome.out
    assert "good4.png: " in outcome.out


def test_records_are_read_only_a_few_ahead() -> None:
    asked = 0

    def items() -> Any:
        nonlocal asked
        for number in range(1000):
            asked += 1
            yield number

    results = checking._in_threads(lambda number: number * 2, items())
    assert [next(results) for _ in range(10)] == list(range(0, 20, 2))
    assert asked <= 10 + 2 * checking._MOST_THREADS
    assert list(results) == list(range(20, 2000, 2))


def test_the_embedded_data_set_has_no_fault() -> None:
    config = qframe.load_config(family="qwen-edit", overrides=["data.options.count=20", "data.options.validation=4"])
    registry = load_registry()
    report = check_data(open_source(config, registry), compose(config, registry), config.train)
    assert (report.total, len(report.usable), report.errors) == (24, 24, 0)
    assert report.record(23).id.endswith("/3")


def test_unreadable_files_are_reported(folder: Path, check: CheckRun) -> None:
    (folder / "good1.png").chmod(0)
    with ordinary_user():
        assert "good1.png" in check().out
