"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """One quantiser."""
    return [
        Component(
            "quantiser",
            "quanto",
            "qframe_quanto.quantiser:QuantoQuantiser",
            options="qframe_quanto.options:QuantoOptions",
            summary="weights in 8 or 4 bits by optimum-quanto; computes in the dtype of the model",
        )
    ]
