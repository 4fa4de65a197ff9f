"""Point by point against an oracle: the same components, seed and inputs, and what either side has at every stage.

Knows no oracle: a plugin registers one (kind "oracle"), and a family names it.
"""

from __future__ import annotations

from qframe.verify.compare import EXACT, FLOAT32, Report, Row, Tolerance, batch_rows, compare
from qframe.verify.run import oracle_of, verify
from qframe.verify.traces import (
    Encoded,
    Norms,
    Oracle,
    Step,
    Steps,
    Trace,
    listening,
    our_trace,
    replaced,
    rows,
    traces,
)

__all__ = [
    "EXACT",
    "FLOAT32",
    "Encoded",
    "Norms",
    "Oracle",
    "Report",
    "Row",
    "Step",
    "Steps",
    "Tolerance",
    "Trace",
    "batch_rows",
    "compare",
    "listening",
    "oracle_of",
    "our_trace",
    "replaced",
    "rows",
    "traces",
    "verify",
]
