"""Keeps LoRAs of a run beside its checkpoints: of every so many steps, and the one with the smallest validation loss.

A kept LoRA has no state of the optimizer, so that it is small, and it is never deleted. Each file is replaced in one
step, and says in its metadata which step it is of, so that a run that is killed at any moment goes on with what is
there.
"""

from __future__ import annotations

import logging
import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from qframe import adapters
from qframe.errors import QframeError
from qframe.files.lora_file import best_file, kept_file

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer

log = logging.getLogger(__name__)

STEP_KEY, LOSS_KEY = "qframe_step", "qframe_val_loss"
"""Metadata of a kept LoRA: the step that it is of, and its validation loss if that is why it is kept."""


def keep_step(trainer: Trainer, run: Path, step: int) -> Path:
    """Write the LoRA in training, or its moving average, into the files that a run keeps, and return the file."""
    return trainer.save_lora(kept_file(run, step), **{STEP_KEY: str(step)})


def keep_best(trainer: Trainer, run: Path, step: int, loss: float) -> bool:
    """Keep the LoRA in training if its validation loss is smaller than that of the kept one; return whether it is.

    A kept one that cannot be read is replaced. A loss that is not finite is never the best.
    """
    known = best_loss(run)
    if not math.isfinite(loss) or (known is not None and loss >= known):
        return False
    trainer.save_lora(best_file(run), **{STEP_KEY: str(step), LOSS_KEY: repr(loss)})
    return True


def best_loss(run: Path) -> float | None:
    """Return the validation loss of the best LoRA that a run has kept; None if it has none that can be read."""
    file = best_file(run)
    if not file.exists():
        return None
    try:
        return float(adapters.describe_lora(file).metadata[LOSS_KEY])
    except (QframeError, KeyError, ValueError) as error:
        log.warning("%s cannot be used, and the next validation replaces it: %s", file, error)
        return None


def set_aside_newer(run: Path, step: int) -> list[Path]:
    """Rename checkpoints and kept LoRAs of later steps than `step`, which a run goes on from with other settings.

    The steps that follow make other weights, under the same names. Returns the new paths.
    """
    newer = [path for path in (run / "checkpoints").glob("step-????????") if _step_of(path) > step]
    newer += [path for path in (run / "kept").glob("step-????????.safetensors") if _step_of(path) > step]
    best = best_file(run)
    if best.exists() and best_step(run) > step:
        newer.append(best)
    mark, renamed = secrets.token_hex(3), []
    for path in sorted(newer):
        renamed.append(path.rename(path.with_name(f"aside-{mark}-{path.name}")))
    if renamed:
        log.warning("%s: what is newer than step %d was renamed to aside-%s-...", run, step, mark)
    return renamed


def best_step(run: Path) -> int:
    """Return the step of the best LoRA that a run has kept; 0 if it has none that can be read."""
    try:
        return int(adapters.describe_lora(best_file(run)).metadata[STEP_KEY])
    except (QframeError, KeyError, ValueError):
        return 0


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("step-").removesuffix(".safetensors")
    return int(number) if number.isdigit() else 0
