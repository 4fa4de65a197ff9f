"""The logger `csv`, which writes the metrics of a run as a table."""

from __future__ import annotations

import csv
import io
import json

from qframe.files.storage import write_file
from qframe.plugins.hookspecs import hookimpl
from qframe.train.run import Run


class CsvLogger:
    """Writes logs/metrics.csv when a run ends.

    The table is made from metrics.jsonl, so that a step which a resumed run repeats has only one row.
    """

    @hookimpl
    def qframe_run_end(self, run: Run) -> None:
        """Write one row per step; the cell of a metric that a step does not have is empty."""
        if not run.metrics_file.exists():
            return
        rows = [json.loads(line) for line in run.metrics_file.read_text(encoding="utf-8").splitlines()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(run.logs / "metrics.csv", table.getvalue().encode())
