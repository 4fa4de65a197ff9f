"""Registers the optimizers with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return two optimizers that torch itself has, and three of other packages."""
    return [
        Component(
            "optimizer",
            "adamw",
            "qframe_optimizers.native:AdamW",
            options="qframe_optimizers.options:AdamWOptions",
            summary="Adam with decoupled weight decay",
        ),
        Component(
            "optimizer",
            "muon",
            "qframe_optimizers.native:Muon",
            options="qframe_optimizers.options:MuonOptions",
            summary="Muon on the matrices of the blocks, AdamW on the rest",
        ),
        Component(
            "optimizer",
            "adamw8bit",
            "qframe_optimizers.packaged:AdamW8bit",
            options="qframe_optimizers.options:AdamW8bitOptions",
            summary="AdamW with moments in 8 bits, by bitsandbytes",
        ),
        Component(
            "optimizer",
            "prodigy",
            "qframe_optimizers.packaged:Prodigy",
            options="qframe_optimizers.options:ProdigyOptions",
            summary="Adam that finds its step size, by prodigyopt; train.learning_rate = 1",
        ),
        Component(
            "optimizer",
            "lion",
            "qframe_optimizers.packaged:Lion",
            options="qframe_optimizers.options:LionOptions",
            summary="the sign of one moment: half the state of Adam; by lion-pytorch",
        ),
    ]
