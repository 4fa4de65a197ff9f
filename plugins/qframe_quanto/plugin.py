"""Registers the quantiser `quanto` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the quantiser `quanto`."""
    return [
        Component(
            "quantiser",
            "quanto",
            "qframe_quanto.quantiser:QuantoQuantiser",
            options="qframe_quanto.options:QuantoOptions",
            summary="weights in 8 or 4 bits by optimum-quanto; computes in the dtype of the model",
        )
    ]
