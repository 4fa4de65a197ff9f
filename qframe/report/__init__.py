"""`qframe report`: what a run's folder holds, as one HTML page that needs nothing else."""

from __future__ import annotations

from qframe.report.page import LARGEST_PICTURES, write_report

__all__ = ["LARGEST_PICTURES", "write_report"]
