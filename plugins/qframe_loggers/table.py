"""Metrics as CSV."""

from __future__ import annotations

import csv
import io
import json

from qframe.files.storage import write_file
from qframe.plugins.hookspecs import hookimpl
from qframe.train.run import Run


class CsvLogger:
    """Writes logs/metrics.csv from metrics.jsonl when a run ends, so that what is replayed stands in it once."""

    @hookimpl
    def qframe_run_end(self, run: Run) -> None:
        """A row per step; a step that lacks a metric has an empty cell."""
        if not run.metrics_file.exists():
            return
        rows = [json.loads(line) for line in run.metrics_file.read_text(encoding="utf-8").splitlines()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(run.logs / "metrics.csv", table.getvalue().encode())
