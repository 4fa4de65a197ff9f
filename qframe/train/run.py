"""A training run as plugins see it, and what it writes into its folder while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import attrs

from qframe.config.schema import Config
from qframe.files.storage import disk_errors, write_file


@attrs.define(eq=False, kw_only=True)
class Run:
    """A training run, as plugins that observe it see it.

    Attributes:
        folder: The folder of everything that the run writes.
        config: The settings of the run.
        step: How many optimizer steps are done.
        resumed_from: The step of the checkpoint that this session continues from; None for a new run.
    """

    folder: Path
    config: Config
    step: int = 0
    resumed_from: int | None = None

    @property
    def metrics_file(self) -> Path:
        """The file metrics.jsonl, which has one line per optimizer step, and one more after it for a validation."""
        return self.folder / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """The folder in which loggers keep their files."""
        return self.folder / "logs"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step. After a kill the file may be ahead of the last checkpoint; see `rewind`."""
        with disk_errors(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as stream:
            # A value that is not finite is null: NaN is not JSON.
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            stream.write(json.dumps({"step": step, **values}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines of the steps after `step`, and a last line that a kill cut short."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        write_file(self.metrics_file, "".join(kept).encode())
