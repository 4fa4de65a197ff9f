"""Registers the commands `qframe config convert` and `qframe config schema` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return both commands."""
    return [
        Component(
            "config-command",
            "convert",
            "qframe_config_tools.convert:convert",
            summary="Make a configuration of another trainer's file.",
        ),
        Component(
            "config-command",
            "schema",
            "qframe_config_tools.schema_command:schema",
            summary="Print the JSON Schema of configurations, for editors.",
        ),
    ]
