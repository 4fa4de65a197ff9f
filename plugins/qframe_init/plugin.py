"""Registers the command `qframe init` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command `init`."""
    return [
        Component(
            "command",
            "init",
            "qframe_init.command:init",
            summary="Look at a data set, and write a commented configuration that trains on it.",
        )
    ]
