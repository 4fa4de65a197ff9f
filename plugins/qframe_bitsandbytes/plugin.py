"""Registers the quantiser `bitsandbytes` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the quantiser `bitsandbytes`."""
    return [
        Component(
            "quantiser",
            "bitsandbytes",
            "qframe_bitsandbytes.quantiser:BitsAndBytesQuantiser",
            options="qframe_bitsandbytes.options:BitsAndBytesOptions",
            summary="weights in nf4 or int8 by bitsandbytes; computes in the dtype of the model",
        )
    ]
