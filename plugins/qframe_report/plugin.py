"""Registers the command `qframe report` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command `qframe report`."""
    return [
        Component(
            "command",
            "report",
            "qframe_report.command:report",
            summary="Write one HTML page about a run, or about several side by side.",
        )
    ]
