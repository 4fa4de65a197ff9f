"""A training run as plugins see it, and what it writes into its folder while it trains."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import attrs

from qframe.config.schema import Config
from qframe.files.disk import disk_errors
from qframe.files.storage import write_file

log = logging.getLogger(__name__)

STRANGE_FILE = "metrics.strange.txt"
"""The file in a run's folder that keeps lines which were found in metrics.jsonl and are no metrics."""


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

    def logged(self) -> list[dict[str, float | None]]:
        """Return the metrics of every step as metrics.jsonl has them; lines that are no metrics are left out."""
        lines = self.metrics_file.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines if _step_of(line) is not None]

    def rewind(self, step: int) -> None:
        """Drop the lines of the steps after `step`, and a last line that a kill cut short.

        Lines that are no metrics of a step, which something else must have written, are moved to the file
        metrics.strange.txt, and a warning says so.
        """
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_bytes().split(b"\n")
        cut_short = lines.pop()  # empty where the last line is whole
        kept, strange = list[bytes](), list[bytes]()
        for line in (*lines, cut_short):
            at = _step_of(line)
            if at is not None and at <= step:
                kept.append(line)
            elif at is None and line.strip() and line is not cut_short:
                strange.append(line)
        if strange:
            aside = self.folder / STRANGE_FILE
            there = aside.read_bytes() if aside.exists() else b""
            write_file(aside, there + b"".join(line + b"\n" for line in strange))
            log.warning(
                "%s: %d lines are no metrics of a step, and were moved to %s", self.metrics_file, len(strange), aside
            )
        write_file(self.metrics_file, b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float | None:
    """The step of a line of metrics.jsonl; None if it is not a line that `Run.log` wrote."""
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = metrics.get("step") if isinstance(metrics, dict) else None
    return step if isinstance(step, int | float) and not isinstance(step, bool) else None
