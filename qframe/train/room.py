"""Checks that the disk has room for what a training run will save, before anything is encoded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qframe import adapters
from qframe.compose import Composition
from qframe.compose.optimizers import optimizer_factory
from qframe.files.storage import require_space


def require_room(composition: Composition, folder: Path, *, kept: int = 0) -> None:
    """Check that the disk of a run's folder has room for one checkpoint, the result and the LoRAs that are kept.

    A denoiser whose shapes are known only from its weights is not checked.

    Args:
        composition: The composition that is trained.
        folder: The run's folder.
        kept: How many LoRAs the run keeps (`train.keep_every`, `train.keep_best`).

    Raises:
        ResourceError: There is not enough room; the message says how much is free and how much is needed.
    """
    sizes = saved_bytes(composition)
    if sizes is not None:
        checkpoint, result = sizes
        what = f"one checkpoint, the result and {kept} kept LoRAs" if kept else "one checkpoint and the result"
        require_space(folder, checkpoint + result * (1 + kept), what=what)


def saved_bytes(composition: Composition) -> tuple[int, int] | None:
    """Return the bytes of a checkpoint, and of the result, that a run with this composition writes.

    None if the shapes of the denoiser are known only from its weights.
    """
    outline = adapters.outlined(composition)
    if outline is None:
        return None
    config = composition.config
    if config.train.mode == "lora":
        parameters = adapters.add_lora(outline.module, config.lora, outline.lora_presets, seed=0)
    else:
        parameters = dict(outline.module.named_parameters())
    trained = {name: nn.Parameter(torch.empty_like(p, dtype=torch.float32)) for name, p in parameters.items()}
    weights = sum(parameter.nbytes for parameter in trained.values())
    moments = optimizer_factory(config.train).state_bytes(trained, blocks=outline.blocks)
    halved = config.train.mode == "full" and config.train.save_dtype == "bfloat16"
    checkpoint = weights * (2 if config.train.ema_decay else 1) + moments
    return checkpoint, weights // 2 if halved else weights
