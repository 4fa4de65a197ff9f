"""Finds the LoRA file that a user means by a path, which may be that of a folder, and checks the scale beside it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from qframe.errors import ConfigError, WeightsError
from qframe.files.storage import MANIFEST, verify_folder

_USUAL_NAMES = ("lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The names that runs of qframe, diffusers and peft give to the LoRA in a folder."""

_BEST, _LATEST = "best", "latest"
"""What may stand after the "@" of a run, besides a step."""

_LARGEST_SCALE = 1000.0
_SHOWN = 8
_LONGEST = 20

CHECKPOINT_FILES = ("average.safetensors", "weights.safetensors")
"""The files of a checkpoint that hold a LoRA in training; the averaged weights are what a run writes at its end."""


def kept_file(run: Path, step: int) -> Path:
    """Return the path of the LoRA that a run keeps of a step (`train.keep_every`), whether it exists or not."""
    return run / "kept" / f"step-{step:08d}.safetensors"


def best_file(run: Path) -> Path:
    """Return the path of the LoRA with the smallest validation loss of a run (`train.keep_best`)."""
    return run / "kept" / f"{_BEST}.safetensors"


def find_lora(path: Path) -> Path:
    """Return the LoRA file that a path means.

    Args:
        path: A LoRA file; or a folder, such as that of a run, whose LoRA has a usual name or is its only safetensors
            file; or a checkpoint of a run, whose averaged weights are taken if the run averages them; or RUN@STEP for a
            step that the run has kept or has a checkpoint of, RUN@best or RUN@latest.

    Raises:
        WeightsError: There is no such file, or the folder has no LoRA or several, or the checkpoint is damaged. The
            message says what is there.
    """
    if path.is_file():
        return path
    if not path.exists():
        run, at, moment = str(path).rpartition("@")
        if at and Path(run).is_dir():
            return _of_moment(Path(run), moment)
        near = difflib.get_close_matches(path.name, _names(path.parent), n=3)
        raise WeightsError(
            f"LoRA {path}: there is no such file",
            f"Did you mean {', '.join(near)}?" if near else "Give a .safetensors file, or the folder of a run.",
        )
    if (path / "state.json").is_file() and (path / MANIFEST).is_file():
        return _of_checkpoint(path)
    for name in _USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = [name for name in _names(path) if name.endswith(".safetensors")]
    if len(found) == 1 and not (path / "checkpoints").is_dir():
        return path / found[0]
    if (path / "checkpoints").is_dir():
        steps = _moments(path)
        raise WeightsError(
            f"LoRA {path}: this run has written no LoRA yet",
            "It is written when the run ends. If the run was interrupted, go on with qframe train --resume."
            + (f" What there is: {_listed(path, steps)}." if steps else ""),
        )
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise WeightsError(f"LoRA {path}: a folder with {len(found)} safetensors files", f"Name one: {shown}.")
    raise WeightsError(f"LoRA {path}: a folder without a safetensors file", "Give the file, or the folder of a run.")


def _of_moment(run: Path, moment: str) -> Path:
    """Return the LoRA of a run at a step, or the best or the latest one."""
    there = _moments(run)
    if moment == _LATEST and there:
        moment = str(max((int(step) for step in there if step != _BEST), default=_BEST))
    name = str(int(moment)) if moment.isascii() and moment.isdigit() else moment
    if name in there:
        return there[name] if there[name].is_file() else _of_checkpoint(there[name])
    if moment == _BEST:
        hint = "A run keeps it with train.keep_best=true and validation.every. "
    else:
        hint = "Give a step, best or latest. "
    raise WeightsError(
        f"LoRA {run}@{moment}: the run has no such LoRA",
        hint + (f"What there is: {_listed(run, there)}." if there else "It has no checkpoint, and has kept none."),
    )


def _moments(run: Path) -> dict[str, Path]:
    """Return what a run has of its LoRA: by step, and by "best", a file that it kept, else the checkpoint."""
    found = {}
    for path in (*sorted((run / "checkpoints").glob("step-*")), *sorted((run / "kept").glob("*.safetensors"))):
        name = path.name.removeprefix("step-").removesuffix(".safetensors")
        if name == _BEST or name.isdigit():
            found[name if name == _BEST else str(int(name))] = path
    return found


def _listed(run: Path, there: Mapping[str, Path]) -> str:
    shown = [f"{run}@{moment}" for moment in sorted(there, key=lambda one: (one == _BEST, one.zfill(_LONGEST)))]
    return ", ".join(shown[-_SHOWN:])


def _of_checkpoint(folder: Path) -> Path:
    """Return the file of a checkpoint with its averaged weights, or with its weights if the run keeps no average."""
    file = next((folder / name for name in CHECKPOINT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise WeightsError(
            f"LoRA {folder}: the checkpoint has no weights in one file, so it is not of a LoRA",
            "A checkpoint of a full fine-tuning is what --resume goes on from; its result is the folder `denoiser`.",
        )
    problems = verify_folder(folder)
    if problems:
        raise WeightsError(f"LoRA {folder}: the checkpoint is damaged: {problems[0]}", "Use another checkpoint.")
    return file


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def scaled_file(text: str) -> tuple[Path, float]:
    """Split FILE[:SCALE], as `--lora` takes it, into the file (or folder) and its scale; neither is checked."""
    file, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(scale)
    except ValueError:
        return Path(text), 1.0
    return Path(file), number


def checked_scale(lora: Path | str, scale: float) -> float:
    """Return the scale that a LoRA is given. ConfigError names the LoRA if its scale is not finite or is too large."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ConfigError(f"LoRA {lora}: the scale must be a finite number, got {scale!r}", "1.0 is usual.")
    if abs(scale) > _LARGEST_SCALE:
        raise ConfigError(
            f"LoRA {lora}: the scale {scale:g} is too large, and would leave no picture",
            f"1.0 is usual; at most {_LARGEST_SCALE:g} is taken.",
        )
    return float(scale)


def find_loras(given: Iterable[tuple[Path, float]]) -> dict[Path, float]:
    """Return the LoRA files that a user means, with the scale of each.

    Args:
        given: Paths as `find_lora` takes them, each with its scale.

    Raises:
        ConfigError: A scale is no finite number or too large, or a LoRA is given twice.
        WeightsError: A LoRA cannot be found.
    """
    scales = [(path, checked_scale(path, scale)) for path, scale in given]
    found: dict[Path, float] = {}
    for path, scale in scales:
        if sum(path == other for other, _ in scales) > 1 or (file := find_lora(path)) in found:
            raise ConfigError(f"lora: a file is given twice: {path}", "Give it once, with the sum of its scales.")
        found[file] = scale
    return found
