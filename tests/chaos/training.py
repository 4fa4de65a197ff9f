"""Kill training runs at random moments, resume them, and look for bits that differ from runs that were left in peace.

python -m tests.chaos.training --kills 50
python -m tests.chaos.training --kills 12 --saver naive     must find problems, or it would not find any
python -m tests.chaos.training --saves 1000                 a reader looks at the checkpoints while they are written

A third of the kills strike between two touches of the files of a checkpoint. After every kill: each checkpoint that can
be seen is as it was published; and a copy of the folder, resumed, ends with the weights, moments, averages and losses
of a run that was never interrupted, to the bit. Exit code 1 and a list if not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import qframe
from qframe.config.schema import Config, TrainConfig
from qframe.files.storage import verify_folder
from qframe.plugins.registry import load_registry
from qframe.train.optim import Optimizers
from qframe.train.state import TrainingState, read_about, save_checkpoint
from qframe.train.trainer import Trainer
from tests.chaos.killing import Moment, killed, start, touches
from tests.qwen import tiny

STEPS = 6
_COMMON = (
    f"train.max_steps={STEPS}",
    "train.batch_size=2",
    "train.learning_rate=0.02",
    "train.checkpoint_every=1",
    "train.caption_dropout=0.3",
    "lora.rank=2",
    "sample.count=0",
    "device=cpu",
)
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "mixed batches": ("denoiser.use=qwen-per-sample-rope", "train.batching=packed", "train.tokens_per_batch=160"),
    "accumulation, average": ("train.gradient_accumulation=2", "train.ema_decay=0.9"),
    "float32, fixed batches, DoRA, dropout": (
        "train.precision=float32",
        "train.batching=fixed",
        "lora.dora=true",
        "lora.dropout=0.2",
    ),
    "quantised base": ("denoiser.quantise.use=quanto",),
    "full, Muon, cosine": ("train.mode=full", "train.optimizer=muon", "train.lr_schedule=cosine"),
}
_SIZES = ((64, 64), (96, 48), (64, 64), (48, 96), (64, 64), (96, 64))


@attrs.frozen
class Report:
    """in_saves: kills that left a checkpoint half written. finished: runs that came to their end between kills."""

    kills: int
    in_saves: int
    finished: int
    problems: tuple[str, ...]


@attrs.frozen
class Scene:
    """A tiny model, a data set of mixed sizes, and configurations of runs on them that share one cache."""

    where: Path
    cache: Path

    @classmethod
    def make(cls, where: Path) -> Scene:
        model = tiny.tiny_qwen_model(where / "model")
        sizes = {"recipe": {"min_area": 40 * 40, "max_area": 96 * 96, "multiple": 16, "side": 64}}
        (model.folder / "qframe.json").write_text(json.dumps(sizes))
        (where / "pictures").mkdir()
        for number, size in enumerate(_SIZES):
            tiny.picture(number, *size).save(where / "pictures" / f"{number}.png")
            tiny.picture(number + 100, *size).save(where / "pictures" / f"{number}_ref.png")
            (where / "pictures" / f"{number}.txt").write_text("put a dot on " + "the circle " * (1 + number % 3))
        return cls(where, where / "cache")

    def config(self, variant: str, output: Path) -> Config:
        values: dict[str, Any] = {
            "model": str(self.where / "model"),
            "output": str(output),
            "data": {"path": str(self.where / "pictures")},
            "cache": {"dir": str(self.cache)},
        }
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*_COMMON, *VARIANTS[variant]])

    def run(self, variant: str, output: Path) -> None:
        """Train to the end: from the newest checkpoint if there is one, else from the start."""
        torch.set_num_threads(1)
        resume = "latest" if any((output / "checkpoints").glob("[!.]*")) else None
        Trainer(self.config(variant, output)).fit(resume)


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a run ends with and an interruption must not change."""
    last = max((run / "checkpoints").glob("[!.]*"))
    found: dict[str, Any] = {
        f"{file.name}: {name}": tensor
        for file in [*last.glob("*.safetensors"), *run.glob("*.safetensors"), *run.glob("denoiser/*.safetensors")]
        for name, tensor in load_file(file).items()
    }
    found["step"] = read_about(last)["step"]
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        found[f"metrics of step {line['step']}"] = (line["loss"], line["gradient_norm"], line["learning_rate"])
    return found


def differences(found: Mapping[str, Any], calm: Mapping[str, Any], when: str) -> list[str]:
    """One line if anything differs."""
    problems = [f"{name} is missing or is too much" for name in sorted(found.keys() ^ calm.keys())]
    for name in sorted(found.keys() & calm.keys()):
        one, other = found[name], calm[name]
        same = torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        problems += [] if same else [f"{name} has other bits"]
    return [f"{when}: {problems[0]} ({len(problems)} differences)"] if problems else []


def chaos(where: Path, *, kills: int, seed: int = 0) -> Report:
    """Kill `kills` runs, the variants in turn, each resumed until it ends, then begun anew."""
    generator = random.Random(seed)
    scene = Scene.make(where)
    problems: list[str] = []
    done = in_saves = finished = 0
    turns = itertools.cycle([_Turn.of(scene, variant) for variant in list(VARIANTS)[: max(1, kills // 2)]])
    while done < kills:
        turn = next(turns)
        moment, watched = turn.draw(generator)
        try:
            struck = killed(partial(scene.run, turn.variant, turn.folder), moment, watched)
        except RuntimeError as error:  # what an earlier kill left cannot be gone on from, which is a finding
            done += 1
            problems.append(f"{turn.variant}, after kill {done - 1}: {error}")
            shutil.rmtree(turn.folder)
            continue
        if not struck:
            finished += 1
            problems += differences(outcome(turn.folder), turn.calm, f"{turn.variant}, uninterrupted end {finished}")
            shutil.rmtree(turn.folder)
            continue
        done += 1
        checkpoints = turn.folder / "checkpoints"
        in_saves += any(checkpoints.glob(".step-*"))
        problems += _seen(checkpoints, f"{turn.variant}, kill {done}")
        problems += turn.resumed(scene, f"{turn.variant}, resumed after kill {done} ({moment})")
    return Report(done, in_saves, finished, tuple(problems))


@attrs.frozen
class _Turn:
    """One variant: its folder that is killed over and over, and what it ends with when left in peace."""

    variant: str
    folder: Path
    calm: Mapping[str, Any]
    seconds: float
    touches: int

    @classmethod
    def of(cls, scene: Scene, variant: str) -> _Turn:
        place = scene.where / variant
        scene_run = partial(scene.run, variant)
        touches(partial(scene_run, place / "first"), place)  # fills the cache, which makes it slower than the next
        began = time.monotonic()
        seen = touches(partial(scene_run, place / "calm"), place / "calm" / "checkpoints")
        return cls(variant, place / "killed", outcome(place / "calm"), time.monotonic() - began, seen)

    def draw(self, generator: random.Random) -> tuple[Moment, Path]:
        """A third of them between two touches of a checkpoint's files, a third of any files, a third at any time."""
        kind = generator.randrange(3)
        if kind == 0:
            return Moment(event=generator.randrange(1, self.touches)), self.folder / "checkpoints"
        if kind == 1:
            return Moment(event=generator.randrange(1, 2 * self.touches)), self.folder
        return Moment(seconds=generator.uniform(0, self.seconds)), self.folder

    def resumed(self, scene: Scene, when: str) -> list[str]:
        """What is wrong with the end of a copy of the folder, resumed."""
        copy = self.folder.with_name("resumed")
        if self.folder.exists():
            shutil.copytree(self.folder, copy)
        try:
            killed(partial(scene.run, self.variant, copy), Moment(), copy)
            return differences(outcome(copy), self.calm, when)
        except Exception as error:  # noqa: BLE001 (whatever a broken saver raises is a finding)
            return [f"{when}: it fails with {error!r}"]
        finally:
            shutil.rmtree(copy)


def _seen(checkpoints: Path, when: str) -> list[str]:
    return [f"{when}: {line}" for folder in checkpoints.glob("step-*") for line in verify_folder(folder)]


def watched_saves(where: Path, *, saves: int) -> tuple[int, list[str]]:
    """(looks, problems): a process saves over and over, and a reader verifies whatever it can see meanwhile."""
    child = start(partial(_save_often, where, saves), Moment(), where)
    looks, problems = 0, []
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        for folder in sorted((where / "checkpoints").glob("step-*")):
            wrong = verify_folder(folder)
            if wrong and folder.exists():  # else retention took it away as a whole, meanwhile
                problems += [f"save {folder.name}: {line}" for line in wrong]
            looks += 1
    return looks, problems


def _save_often(where: Path, saves: int) -> None:
    parameters = {"layer": nn.Parameter(torch.randn(64, 64))}
    state = TrainingState(parameters, Optimizers(parameters, TrainConfig(), "blocks"), None)
    for step in range(saves):
        state.step = step
        save_checkpoint(where, state, config="", about={}, keep=2)


@contextmanager
def naive_saver() -> Iterator[None]:
    """What not to do: one folder, its files written in place, each good by itself."""

    def save_in_place(run: Path, state: TrainingState, **settings: Any) -> Path:
        folder = run / "checkpoints" / "last"
        with tempfile.TemporaryDirectory() as scratch:
            whole = save_checkpoint(Path(scratch), state, **settings)
            folder.mkdir(parents=True, exist_ok=True)
            for file in whole.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def find(run: Path, wanted: str, *_: Any) -> Path:
        return run / "checkpoints" / "last"

    saves = mock.patch("qframe.train.watch.save_checkpoint", save_in_place)
    with saves, mock.patch("qframe.train.session.find_checkpoint", find):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--saver", choices=["qframe", "naive"], default="qframe")
    parser.add_argument("--saves", type=int, help="no kills: so many saves, and a reader beside them")
    given = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # a forked process has no other threads of OpenMP
    with tempfile.TemporaryDirectory() as scratch:
        if given.saves:
            looks, problems = watched_saves(Path(scratch), saves=given.saves)
            told = f"{given.saves} saves, {looks} looks"
        else:
            load_registry()
            with naive_saver() if given.saver == "naive" else nullcontext():
                report = chaos(Path(scratch), kills=given.kills, seed=given.seed)
            problems = list(report.problems)
            told = f"{report.kills} kills, {report.in_saves} of them inside a save, {report.finished} runs that ended"
    for problem in problems[:20]:
        print(problem)  # noqa: T201 (a program)
    print(f"{told}, {len(problems)} problems; {time.monotonic() - began:.0f} s")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
