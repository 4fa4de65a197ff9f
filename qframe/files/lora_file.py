"""Finds the LoRA file that a user means by a path, which may be that of a folder, and checks the scale beside it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path

from qframe.errors import ConfigError, WeightsError

_USUAL_NAMES = ("lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The names that runs of qframe, diffusers and peft give to the LoRA in a folder."""

_LARGEST_SCALE = 1000.0
_SHOWN = 8


def find_lora(path: Path) -> Path:
    """Return the LoRA file that a path means.

    Args:
        path: A LoRA file; or a folder, such as that of a run, whose LoRA has a usual name or is its only safetensors
            file.

    Raises:
        WeightsError: There is no such file, or the folder has no LoRA or several. The message says what is there.
    """
    if path.is_file():
        return path
    if not path.exists():
        near = difflib.get_close_matches(path.name, _names(path.parent), n=3)
        raise WeightsError(
            f"LoRA {path}: there is no such file",
            f"Did you mean {', '.join(near)}?" if near else "Give a .safetensors file, or the folder of a run.",
        )
    for name in _USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = [name for name in _names(path) if name.endswith(".safetensors")]
    if len(found) == 1 and not (path / "checkpoints").is_dir():
        return path / found[0]
    if (path / "checkpoints").is_dir():
        raise WeightsError(
            f"LoRA {path}: this run has written no LoRA yet",
            "It is written when the run ends. If the run was interrupted, go on with qframe train --resume.",
        )
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise WeightsError(f"LoRA {path}: a folder with {len(found)} safetensors files", f"Name one: {shown}.")
    raise WeightsError(f"LoRA {path}: a folder without a safetensors file", "Give the file, or the folder of a run.")


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


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
