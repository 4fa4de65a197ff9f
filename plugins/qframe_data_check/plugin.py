"""Registers the command group `qframe data` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command group `data`, which has the command `check`."""
    return [
        Component(
            "command",
            "data",
            "qframe_data_check.command:data",
            summary="Data sets: check one before it is trained on.",
        )
    ]
