"""Facts about the default path that must hold on every device: each is a short run, compared with one on the CPU.

`tests/gpu/test_facts.py` makes tests of them; the program runs them without pytest.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import qframe
from qframe.config import load_config
from qframe.train.trainer import Trainer
from tests.gpu.asked import Asked
from tests.gpu.environment import ROOT

STEPS = 2
TRAINED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "the default": ("qwen-edit", ()),
    "without a cache": ("qwen-edit", ("cache.enabled=false",)),
    "gradient checkpointing, average, validation": (
        "qwen-edit",
        ("train.gradient_checkpointing=true", "train.ema_decay=0.9", "validation.every=1"),
    ),
    "all weights": ("qwen-edit", ("train.mode=full",)),
    "packed batches with per-sample RoPE": (
        "qwen-edit",
        ("denoiser.use=qwen-per-sample-rope", "train.batching=packed", "train.tokens_per_batch=400"),
    ),
    "a quantised base": ("qwen-edit", ("denoiser.quantise.use=quanto",)),
    "text to image": ("qwen-image", ()),
    "several references": ("qwen-edit-plus", ()),
    "inside a mask": ("qwen-inpaint", ()),
    "encoder and codec on the CPU": ("qwen-edit", ("encoder.device=cpu", "codec.device=cpu")),
}
"""The trainings by name: the family, and what is changed in its configuration."""
SAMPLED = ("qwen-image", "qwen-edit", "qwen-edit-plus", "qwen-inpaint")
NEAR = 0.03
"""How far, relatively, a loss in bfloat16 may be from the CPU's."""


def trainer(name: str, folder: Path, device: str, *more: str) -> Trainer:
    """Make the trainer of a training of `TRAINED`, which samples before its first step as a default run does."""
    family, changes = TRAINED[name]
    values = {"output": str(folder / "run"), "cache": {"dir": str(folder / "cache")}}
    overrides = [
        *(f"device={device}", "dtype=bfloat16", f"train.max_steps={STEPS}", "train.batch_size=2"),
        *("data.options.count=8", "data.options.validation=2", "sample.num_inference_steps=2"),
        *("sample.count=2", "cache.batch_size=8", "train.checkpoint_every=1", *changes, *more),
    ]
    return Trainer(load_config(family=family, values=values, overrides=overrides))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each step of the run."""
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]


def check_training(name: str, folder: Path, device: str) -> float:
    """Train on the device and on the CPU; return by how much the losses differ, relatively.

    Raises:
        AssertionError: A loss or a gradient is not finite or differs too much, or no weights were written.
    """
    worst = 0.0
    found = {}
    for place, where in (("device", device), ("reference", "cpu")):
        result = trainer(name, folder / place, where).fit()
        assert result.weights.exists(), f"no weights in {result.weights}"
        found[place] = [line for line in metrics(folder / place) if "loss" in line]
    for ours, theirs in zip(found["device"], found["reference"], strict=True):
        assert math.isfinite(ours["loss"]), f"step {ours['step']}: the loss is {ours['loss']}"
        assert math.isfinite(ours["gradient_norm"]), f"step {ours['step']}: the gradient is {ours['gradient_norm']}"
        assert ours["gradient_norm"] > 0, f"step {ours['step']}: the gradient is zero"
        worst = max(worst, abs(ours["loss"] - theirs["loss"]) / theirs["loss"])
    assert worst < NEAR, f"the loss differs from the CPU's by {worst:.3f}"
    return worst


def check_resume(folder: Path, device: str) -> float:
    """Stop a run after a step and resume it; return the largest difference from a run that was never stopped."""
    name = "the default"
    trainer(name, folder / "whole", device).fit()
    trainer(name, folder / "resumed", device, "train.max_steps=1").fit()
    trainer(name, folder / "resumed", device).fit("latest")
    one, other = (load_file(folder / place / "run" / "lora.safetensors") for place in ("whole", "resumed"))
    worst = max(float((one[key].float() - other[key].float()).abs().max()) for key in one)
    largest = max(float(one[key].abs().max()) for key in one)
    assert worst <= 1e-3 * largest, f"a resumed run differs by {worst}, of values up to {largest}"
    return worst


def check_sampling(family: str, device: str) -> float:
    """Sample on the device and on the CPU in float32; return the largest difference of a pixel, of 1."""
    from qframe_verify.examples import example_part, example_picture

    asked: dict[str, Any] = {"prompt": "make the circle blue", "num_inference_steps": 2, "output_type": "np"}
    pictures = []
    for where in (device, "cpu"):
        pipe = qframe.load(family, overrides=[f"device={where}", "dtype=float32"])
        size = _size(pipe)
        if family != "qwen-image":
            asked["image"] = example_picture(size)
        if family == "qwen-inpaint":
            asked["mask_image"] = example_part(size)
        found = pipe(**asked, generator=torch.Generator().manual_seed(0)).images
        pictures.append(torch.as_tensor(found[0]).float())
    worst = float((pictures[0] - pictures[1]).abs().max())
    assert worst < 0.02, f"a pixel differs by {worst}"
    return worst


def _size(pipe: Any) -> tuple[int, int]:
    from qframe_verify.examples import example_size

    found: tuple[int, int] = example_size(pipe.recipe.geometry)
    return found


def run(asked: Asked) -> None:
    """Check every fact, and add a row for each; a fact that does not hold stops none of the others."""
    names = list(TRAINED)[:2] if asked.tiny else list(TRAINED)
    checks: dict[str, Any] = {
        f"training: {name}": lambda folder, name=name: check_training(name, folder, asked.device) for name in names
    }
    if not asked.tiny:
        checks["a resumed run"] = lambda folder: check_resume(folder, asked.device)
    for family in SAMPLED[:1] if asked.tiny else SAMPLED:
        checks[f"sampling: {family}"] = lambda folder, family=family: check_sampling(family, asked.device)
    for place, (what, check) in enumerate(checks.items()):
        started = time.monotonic()
        try:
            worst = check(asked.folder / str(place))
        except Exception as error:  # noqa: BLE001 - an error of one fact must not lose the others
            traceback.print_exc()
            asked.rows.add(what, note=f"{type(error).__name__}: {error}".splitlines()[0], failed=True)
        else:
            took = time.monotonic() - started
            asked.rows.add(what, worst, predicted=0.0 if "resume" in what else 0.003, note=f"difference; {took:.1f} s")


def run_pytest(asked: Asked) -> None:
    """Run the tests marked gpu, if pytest is installed. In the tiny form they are only collected."""
    if importlib.util.find_spec("pytest") is None:
        asked.rows.add("tests marked gpu", note="not run: pytest is not installed here")
        return
    from tests.watched import run_watched

    # With settings of its own: those of pyproject.toml ask for plugins of pytest that a bare machine lacks.
    settings = asked.folder / "pytest.ini"
    settings.write_text(
        f"[pytest]\npythonpath = {ROOT}\naddopts = --import-mode=importlib\nmarkers =\n    gpu\n    slow\n    fast\n"
    )
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    own = Path(__file__).with_name("test_facts.py")  # what `run` has shown already
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(ROOT), "--confcutdir", str(ROOT)]
    command += ["-m", "gpu", "-q", "-W", "ignore", "-p", "no:cacheprovider", "--device", asked.device]
    command += ["--collect-only"] if asked.tiny else []
    watched = run_watched([*command, *(str(file) for file in files if file != own)], limit=600, folder=ROOT)
    print(watched.output)  # noqa: T201 (a program)
    last = watched.output.strip().splitlines()[-1]
    count = re.search(r"(\d+)(?:/\d+)? (?:passed|tests collected)", last)
    asked.rows.add(
        "tests marked gpu", float(count[1]) if count else 0.0, note=last, failed=watched.status != 0 or count is None
    )
