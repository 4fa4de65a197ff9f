"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """The command `qframe report`."""
    return [
        Component(
            "command",
            "report",
            "qframe_report.command:report",
            summary="Write one HTML page about a run, or about several side by side.",
        )
    ]
