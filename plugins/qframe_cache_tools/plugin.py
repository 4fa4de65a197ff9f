"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """The command group `cache`."""
    return [
        Component(
            "command",
            "cache",
            "qframe_cache_tools.command:cache",
            summary="Encoded examples: build them before training, check them, count them, "
            "and delete what is not needed.",
        )
    ]
