"""The logger `tensorboard`, which writes metrics and samples for TensorBoard."""

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
    """Writes event files into logs/tensorboard.

    When a run resumes from a checkpoint, TensorBoard is told to drop what was logged after that checkpoint.
    """

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
        """Open the event file, and write the configuration of the run as text."""
        purge = None if run.resumed_from is None else run.step + 1
        self._writer = self._open(str(run.logs / "tensorboard"), purge_step=purge)
        self._writer.add_text("config", f"```\n{dump_config(run.config)}\n```", run.step)

    @hookimpl
    def qframe_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the curve of each metric; a value that is not finite is left out."""
        for name, value in metrics.items():
            if math.isfinite(value):
                group = "validation" if name.startswith("val_") else "train"
                self._writer.add_scalar(f"{group}/{name}", value, step)

    @hookimpl
    def qframe_samples(self, step: int, files: Sequence[Path]) -> None:
        """Write each sample under the name of its file, so that TensorBoard can page through the steps of a sample."""
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(f"samples/{file.stem}", pixels, step, dataformats="HWC")
        self._writer.flush()

    @hookimpl
    def qframe_run_end(self) -> None:
        """Write what is still in memory, and close the event file."""
        if self._writer is not None:
            self._writer.close()
