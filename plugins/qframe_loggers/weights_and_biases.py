"""The logger `wandb`, which sends metrics and samples to Weights & Biases."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qframe.config import config_items
from qframe.errors import ConfigError
from qframe.files.storage import write_file
from qframe.plugins.distribution import install_hint
from qframe.plugins.hookspecs import hookimpl
from qframe.train.run import Run


class WandbLogger:
    """Logs to a run of the project `logging.project` that has the name of the training run's folder.

    When a training run resumes, it goes on logging to the same run.
    """

    def __init__(self) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"logging.use: the logger wandb needs the package wandb ({error})",
                f"Install it ({install_hint('wandb')}), or leave it out of logging.use.",
            ) from error
        self._run: Any = None

    @hookimpl
    def qframe_run_start(self, run: Run) -> None:
        """Start the run, or go on with it: its id is stored in logs/wandb-id."""
        name = run.logs / "wandb-id"
        if not name.exists():
            write_file(name, secrets.token_hex(8).encode())
        self._run = self._wandb.init(
            project=run.config.logging.project,
            name=run.folder.name,
            id=name.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(run.logs),
            config=config_items(run.config),
        )

    @hookimpl
    def qframe_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the curve of each metric."""
        self._run.log(dict(metrics), step=step)

    @hookimpl
    def qframe_samples(self, step: int, files: Sequence[Path]) -> None:
        """Send each sample under the name of its file."""
        self._run.log({f"samples/{file.stem}": self._wandb.Image(str(file)) for file in files}, step=step)

    @hookimpl
    def qframe_run_end(self, error: BaseException | None) -> None:
        """End the run; it is marked as failed if training raised an error."""
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)
