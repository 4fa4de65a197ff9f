"""The parts that run commands of qframe: training, parity with diffusers, mixed shapes, and sampling."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from typing import Any

from qframe.cli import main
from tests.gpu.asked import Asked

FAMILIES = ("qwen-image", "qwen-edit", "qwen-edit-plus", "qwen-inpaint", "qwen-edit-inpaint")
DIFFERENT = 2e-2
"""How far, of the largest value, an intermediate result in bfloat16 may be from diffusers'."""


def train(asked: Asked) -> None:
    """Run `qframe train` with its defaults, but for the number of steps, and read what it wrote."""
    run = asked.folder / "run"
    steps = 3 if asked.tiny else 200
    settings = [f"train.max_steps={steps}", f"device={asked.device}", f"cache.dir={asked.folder / 'cache'}"]
    if asked.tiny:
        settings += ["data.options.count=16", "data.options.validation=2", "sample.num_inference_steps=2"]
    arguments = ["train", "--family", "qwen-edit", "--output", str(run)]
    status = main([*arguments, *(word for setting in settings for word in ("--set", setting))])
    asked.rows.add("qframe train: exit code", status, reach=0, better="equal", failed=status != 0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = statistics.median([line["seconds"] for line in lines if "seconds" in line][len(lines) // 2 :])
    losses = [line["loss"] for line in lines if "loss" in line]
    part = max(len(losses) // 10, 1)
    fell = statistics.mean(losses[-part:]) / statistics.mean(losses[:part])
    asked.rows.add(
        "qframe train: seconds per step", seconds, "s", predicted=0.04, note="16 samples of 64 x 64 pixels, 5 blocks"
    )
    asked.rows.add("qframe train: loss at the end / at the beginning", fell, predicted=0.6, reach=1.0)


def parity(asked: Asked) -> None:
    """Compare every family with diffusers' pipeline on the same device in bfloat16, stage by stage."""
    for family in FAMILIES[:1] if asked.tiny else FAMILIES:
        steps = "2" if asked.tiny else "4"
        options = [
            "--device",
            asked.device,
            "--dtype",
            "bfloat16",
            "--steps",
            steps,
            "--batch",
            "1" if asked.tiny else "3",
        ]
        found = printed(["verify", "--family", family, *options, "--json"], accepted=(0, 1))
        stages = len(found["rows"])
        equal = sum(1 for row in found["rows"] if row["absolute"] == 0)
        asked.rows.add(
            f"{family}: stages outside their tolerance", found["misses"], predicted=0, reach=0, better="equal",
            note=f"{stages} stages compared, {equal} of them equal to the bit", failed=found["misses"] > 0,
        )  # fmt: skip


def ragged(asked: Asked) -> None:
    """Compare a packed batch of mixed shapes with groups of one shape, and with diffusers' padded batch."""
    size = ["--quick"]
    if not asked.tiny:
        size = ["--width", "3072", "--head", "128", "--layers", "4", "--text-width", "3584", "--s", "16,32"]
    repeats = "1" if asked.tiny else "3"
    options = ["--device", asked.device, "--dtype", "bfloat16", "--repeats", repeats]
    found = printed(["bench", "transformer", *size, *options, "--json"], accepted=(0, 1))
    for one in found["comparisons"]:
        for ratio in one["ratios"]:
            what = f"{ratio['name']}, s = {one['s']}, text {one['text']}"
            asked.rows.add(what, ratio["value"], predicted=_predicted(ratio["name"]), reach=ratio["most"])


def sampling(asked: Asked) -> None:
    """Compare sampling with its forward passes alone and with diffusers' pipeline, in one run."""
    for family in ("qwen-image",) if asked.tiny else ("qwen-image", "qwen-edit"):
        size = ["--size", "64", "--width", "64", "--layers", "1", "--steps", "2", "--repeats", "1"]
        if not asked.tiny:
            size = ["--size", "512", "--width", "3072", "--layers", "6", "--steps", "8", "--repeats", "3"]
        options = ["--family", family, "--device", asked.device, "--dtype", "bfloat16"]
        found = printed(["bench", "sample", *options, *size, "--json"])
        for ratio in found["ratios"]:
            what = f"{family}: {ratio['name']}"
            asked.rows.add(what, ratio["value"], predicted=_predicted(ratio["name"]), reach=ratio["most"])


PREDICTED = (
    ("time, packed / padded", 0.65),
    ("memory, packed / groups accumulated", 1.6),
    ("memory, packed / padded", 0.6),
    ("time, packed", 0.95),
    ("memory, packed", 0.95),
    ("uniform batch", 0.95),
    ("joined / apart: time", 0.95),
    ("joined / apart: memory", 1.6),
)
"""The predicted ratios, by a part of their names; all others are predicted to be 1."""


def _predicted(name: str) -> float:
    return next((value for part, value in PREDICTED if part in name), 1.0)


def printed(arguments: list[str], *, accepted: tuple[int, ...] = (0,)) -> Any:
    """Run a command of qframe, and return the JSON that it prints.

    Raises:
        RuntimeError: It ended with an exit code that is not accepted.
    """
    written = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(written):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    if status not in accepted:
        raise RuntimeError(f"qframe {' '.join(arguments)} ended with {status}")
    text = written.getvalue()
    return json.loads(text[text.index("{") :])
