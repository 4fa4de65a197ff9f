"""Checks LoRAs against the outline of a composition's denoiser, before the denoiser's weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from qframe.adapters.fitting import read_fitting
from qframe.compose import Composition
from qframe.interfaces import Denoiser


def outlined(composition: Composition) -> Denoiser | None:
    """Return the denoiser on the meta device, with names and shapes of its layers but without weights.

    Returns None if the denoiser's class cannot make an outline.
    """
    found: Denoiser | None = composition.outline("denoiser", torch.float32)
    return found


def check_files(composition: Composition, files: Iterable[Path]) -> Denoiser | None:
    """Check that LoRA files fit the denoiser before its weights are read, and return what `outlined` returns.

    WeightsError names the layers that do not fit. Without an outline nothing is checked.
    """
    outline = outlined(composition)
    if outline is not None:
        for file in files:
            read_fitting(outline.module, file)
    return outline
