"""Registers the command `qframe runs` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command `qframe runs`."""
    return [
        Component(
            "command",
            "runs",
            "qframe_runs.command:runs",
            summary="List training runs: state, step, loss, time left, and the command that goes on.",
        )
    ]
