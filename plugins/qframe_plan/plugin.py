"""Registers the command `qframe plan` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command `qframe plan`."""
    return [
        Component(
            "command",
            "plan",
            "qframe_plan.command:plan",
            summary="List settings with which training fits a card, with memory and time.",
        )
    ]
