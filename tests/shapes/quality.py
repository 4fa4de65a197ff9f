"""Train the demo's LoRA in several ways that must not lower its quality, and count how much each has learned.

python -m tests.shapes.quality

The first way is a plain run. The others are: a run that is stopped by SIGTERM and resumed; a run in two processes; a
run on a base quantised to 8-bit integers; and a run with another seed, which shows how much two runs differ by chance.
The file of the plain run is also converted to every layout and read back. Success is judged strictly
(`qframe_shapes.metrics`) on scenes that training never showed, for the new operation and for those that the base model
already knew.

The exit code is 1 if the file of the resumed run has other values, if a layout gives other pictures, or if a way has
learned significantly less than the plain run (Fisher's exact test, one-sided, 1 %).
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import attrs
from safetensors import safe_open
from scipy import stats

from qframe.cli import main as qframe_main
from qframe.config.schema import LoraLayout
from qframe_shapes import evaluate, tasks
from qframe_shapes.evaluate import UNSEEN, Group
from qframe_shapes.files import model_folder
from qframe_shapes.sampling import qframe_sampler

NEW = Group(tasks.UNLEARNED_OPERATION, UNSEEN)
KNOWN = tuple(Group(name, UNSEEN) for name in tasks.EDITS)
QUANTISED = ("denoiser.quantise.use=quanto", "denoiser.quantise.options.weights=qint8")
LEVEL = 0.01


@attrs.frozen
class Count:
    """How many samples are right (`right`) of how many (`of`)."""

    right: int
    of: int

    def __str__(self) -> str:
        low, high = stats.binomtest(self.right, self.of).proportion_ci(0.95, method="wilson")
        return f"{self.right} of {self.of} ({100 * low:.0f} to {100 * high:.0f} %)"

    def worse_than(self, other: Count) -> bool:
        """Whether this count is significantly lower than the other one, at a level of 1 %."""
        table = [[self.right, self.of - self.right], [other.right, other.of - other.right]]
        return bool(stats.fisher_exact(table, alternative="less").pvalue < LEVEL)


@attrs.frozen
class Learned:
    """The successes with a LoRA: at the new operation, and at the operations that the base model already knew."""

    new: Count
    known: Count


def trained(folder: Path, name: str, steps: int, *settings: str, arguments: Sequence[str] = ()) -> Path:
    """Train with the demo's configuration from the command line and return the LoRA file. RuntimeError if it fails."""
    process = _start(folder / name, steps, settings, arguments)
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}:\n{told}")
    return folder / name / "lora.safetensors"


def stopped_and_resumed(folder: Path, name: str, steps: int) -> tuple[Path, int]:
    """Stop such a run by SIGTERM near its middle and resume it; return the file and the step at which it stopped."""
    process = _start(folder / name, steps, (), ())
    middle = folder / name / "checkpoints" / f"step-{steps // 2:08d}"
    while process.poll() is None and not middle.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        raise RuntimeError(f"{name} ended with {process.returncode}, not by the signal:\n{told}")
    stopped = max(int(path.name.removeprefix("step-")) for path in middle.parent.glob("step-????????"))
    return trained(folder, name, steps, arguments=("--resume",)), stopped


def _start(output: Path, steps: int, settings: Sequence[str], arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qframe", "train", "--family", "qwen-edit", "--output", str(output), *arguments]
    for setting in (
        f"train.max_steps={steps}",
        f"train.checkpoint_every={max(steps // 2, 1)}",
        "data.options.validation=0",  # pictures are counted here, more of them
        "sample.count=0",
        "device=cpu",
        *settings,
    ):
        command += ["--set", setting]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=here)


def learned(file: Path | None, count: int, *overrides: str) -> Learned:
    """Count the successes on `count` scenes of the new operation and as many of the known ones.

    Args:
        file: The LoRA; None measures the base model.
        count: Number of scenes of each kind.
        overrides: Configuration keys with their values.
    """
    sampler = qframe_sampler(model_folder(), steps=12, lora=file, overrides=overrides)
    new = evaluate.evaluate(sampler, count=count, groups=[NEW])
    known = evaluate.evaluate(sampler, count=-(-count // len(KNOWN)), groups=KNOWN)
    return Learned(_count(new), _count(known))


def _count(report: evaluate.Report) -> Count:
    return Count(sum(result.verdict.success for result in report.results), len(report.results))


def content(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """The metadata and the bytes of every tensor of a file.

    The bytes of the whole file cannot be compared, because safetensors writes the metadata in random order.
    """
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata(), {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118


def pictures(file: Path, count: int) -> list[bytes]:
    """Sample `count` scenes of the new operation with a LoRA file."""
    sampler = qframe_sampler(model_folder(), steps=12, lora=file)
    return [result.picture.tobytes() for result in evaluate.run_group(sampler, NEW, count=count, seed=0)]


def equal_layouts(file: Path, count: int) -> dict[str, bool]:
    """For each layout, whether the file gives equal pictures after it is converted to the layout and read back."""
    wanted = pictures(file, count)
    found = {}
    for layout in get_args(LoraLayout):
        converted = file.with_name(f"{layout}.safetensors")
        arguments = ["lora", "convert", str(file), "--to", layout, "--output", str(converted)]
        if qframe_main(arguments):
            raise RuntimeError(f"qframe {' '.join(arguments)} failed")
        found[layout] = pictures(converted, count) == wanted
    return found


def compare(
    folder: Path, steps: int, count: int, *, other_seed: bool = True, tell: Callable[[str], object] = str
) -> list[str]:
    """Train in all ways and return a list of what is wrong.

    Args:
        folder: A folder for the runs.
        steps: Optimizer steps of each run.
        count: Number of scenes to sample.
        other_seed: Whether to train with another seed as well.
        tell: A function that gets a line of text for every result.
    """
    wrong = []
    plain = trained(folder, "plain", steps)
    resumed, step = stopped_and_resumed(folder, "resumed", steps)
    tell(f"stopped at step {step} of {steps} and resumed")
    if content(resumed) != content(plain):
        wrong.append("the resumed run's file has other values")
    for layout, equal in equal_layouts(plain, min(count, 16)).items():
        tell(f"{layout}: {'the same' if equal else 'OTHER'} pictures")
        if not equal:
            wrong.append(f"{layout}: other pictures")
    two = trained(folder, "two", steps, "train.batch_size=8", arguments=("--nproc", "2"))  # 16 together, as the demo
    quantised = trained(folder, "quantised", steps, *QUANTISED)
    ways: dict[str, tuple[Path | None, Sequence[str]]] = {
        "no training": (None, ()),
        "plain": (plain, ()),
        "two processes": (two, ()),
        "quantised base (qint8), sampled on it": (quantised, QUANTISED),
        "quantised base (qint8), sampled on the plain one": (quantised, ()),
    }
    if other_seed:
        ways["another seed"] = (trained(folder, "seed", steps, "train.seed=1"), ())
    found = {}
    for name, (file, overrides) in ways.items():
        found[name] = learned(file, count, *overrides)
        tell(f"{name}: new {found[name].new}; known {found[name].known}")
    return wrong + worse(found)


def worse(found: Mapping[str, Learned]) -> list[str]:
    """Name the ways that have learned significantly less than the plain run, or forgotten significantly more."""
    plain = found["plain"]
    wrong = []
    for name, one in found.items():
        if name != "no training" and one.new.worse_than(plain.new):
            wrong.append(f"{name}: new {one.new}, plain {plain.new}")
        if name != "no training" and one.known.worse_than(plain.known):
            wrong.append(f"{name}: known {one.known}, plain {plain.known}")
    if not found["no training"].new.worse_than(plain.new):
        wrong.append("plain: nothing was learned")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--count", type=int, default=100, help="of scenes of the new operation, and of the known ones")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wrong = compare(Path(scratch), asked.steps, asked.count, tell=functools.partial(print, flush=True))
    for line in wrong:
        print(f"WRONG  {line}")  # noqa: T201 (a program)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
