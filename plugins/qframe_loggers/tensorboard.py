"""Metrics and samples for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qframe.config import dump_config
from qframe.errors import ConfigError
from qframe.plugins.distribution import install_hint
from qframe.plugins.hookspecs import hookimpl
from qframe.train.run import Run


class TensorBoardLogger:
    """Writes event files into logs/tensorboard. Where a run resumes, what was logged past its checkpoint is purged."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"logging.use: the logger tensorboard needs the package tensorboard ({error})",
                f"Install it ({install_hint('tensorboard')}), or leave it out of logging.use.",
            ) from error
        self._open: Any = SummaryWriter
        self._writer: Any = None

    @hookimpl
    def qframe_run_start(self, run: Run) -> None:
        """The configuration as text."""
        purge = None if run.resumed_from is None else run.step + 1
        self._writer = self._open(str(run.logs / "tensorboard"), purge_step=purge)
        self._writer.add_text("config", f"```\n{dump_config(run.config)}\n```", run.step)

    @hookimpl
    def qframe_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """A curve per metric."""
        for name, value in metrics.items():
            if math.isfinite(value):
                group = "validation" if name.startswith("val_") else "train"
                self._writer.add_scalar(f"{group}/{name}", value, step)

    @hookimpl
    def qframe_samples(self, step: int, files: Sequence[Path]) -> None:
        """A picture per sample, under the name of its file, so that steps can be paged through."""
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(f"samples/{file.stem}", pixels, step, dataformats="HWC")
        self._writer.flush()

    @hookimpl
    def qframe_run_end(self) -> None:
        """Nothing is left unwritten."""
        if self._writer is not None:
            self._writer.close()
