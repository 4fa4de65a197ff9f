"""The logger `csv`, which writes the metrics of a training run as a table."""

from __future__ import annotations

import csv
import io
from typing import Any

from qframe.files.storage import write_file
from qframe.plugins.hookspecs import hookimpl
from qframe.train.run import Run


class CsvLogger:
    """The logger that writes logs/metrics.csv into the run's folder when a training run ends.

    The table is made from the run's metrics.jsonl, which has every step once, also when a resumed run has repeated
    steps. The validation losses, which have a line of their own there, stand in the row of their step.
    """

    @hookimpl
    def qframe_run_end(self, run: Run) -> None:
        """Write the table with one row per step; a cell is empty if the step has no such metric."""
        if not run.metrics_file.exists():
            return
        rows: dict[Any, dict[str, Any]] = {}
        for line in run.logged():
            rows.setdefault(line["step"], {}).update(line)
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_file(run.logs / "metrics.csv", table.getvalue().encode())
