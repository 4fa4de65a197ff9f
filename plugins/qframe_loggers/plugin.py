"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Three loggers. A run writes metrics.jsonl without any of them."""
    return [
        Component(
            "logger",
            "csv",
            "qframe_loggers.table:CsvLogger",
            summary="metrics as a table, written when the run ends: logs/metrics.csv",
        ),
        Component(
            "logger",
            "tensorboard",
            "qframe_loggers.tensorboard:TensorBoardLogger",
            summary="metrics and samples for TensorBoard, in logs/tensorboard",
        ),
        Component(
            "logger",
            "wandb",
            "qframe_loggers.weights_and_biases:WandbLogger",
            summary="metrics and samples for Weights & Biases, in project logging.project",
        ),
    ]
