"""A training run as plugins see it, and what it writes into its folder while it goes on."""

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
    """folder: where everything of the run lies. step: optimizer steps done. resumed_from: a step, or None."""

    folder: Path
    config: Config
    step: int = 0
    resumed_from: int | None = None

    @property
    def metrics_file(self) -> Path:
        """metrics.jsonl: one line per optimizer step."""
        return self.folder / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """logs: where loggers keep files."""
        return self.folder / "logs"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. After a kill the file may be ahead of the last checkpoint; `rewind` cuts that."""
        with disk_errors(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as stream:
            # A value that is not finite is null: NaN is not JSON.
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            stream.write(json.dumps({"step": step, **values}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, and a line that a kill cut short."""
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
