"""Registers the loggers `csv`, `tensorboard` and `wandb` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the three loggers; `logging.use` chooses among them. A run writes metrics.jsonl even without a logger."""
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
