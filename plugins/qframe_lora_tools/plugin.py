"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """The command group `lora`."""
    return [
        Component(
            "command",
            "lora",
            "qframe_lora_tools.command:lora",
            summary="LoRA files: see what they hold, convert them for other programs, merge them into a model.",
        )
    ]
