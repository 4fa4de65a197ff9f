"""Registers the command `qframe verify` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command `qframe verify`."""
    return [
        Component(
            "command",
            "verify",
            "qframe_verify.command:verify",
            summary="Compare a family with diffusers' pipeline, stage by stage.",
        )
    ]
