"""Registers the quantiser `torchao` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the quantiser `torchao`."""
    return [
        Component(
            "quantiser",
            "torchao",
            "qframe_torchao.quantiser:TorchaoQuantiser",
            options="qframe_torchao.options:TorchaoOptions",
            summary="weights in int8 or float8 by torchao; computes in the dtype of the model",
        )
    ]
