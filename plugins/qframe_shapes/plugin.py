"""Register the embedded model, its data set and the command `qframe demo` with qframe. This module imports no torch."""

from qframe import Component, hookimpl

# These values were found by experiments: with them, a LoRA learns a new operation in about a minute on two CPU cores.
_DEFAULTS = {
    # The matrices are too small for two threads: a second thread makes a step 10 % faster on an idle machine, and
    # several times slower on a busy one.
    "threads": 1,
    "lora": {"rank": 16, "targets": ["attention+mlp"]},
    "train": {
        "max_steps": 400,
        "batch_size": 16,
        # All pictures have one size, and the length of an instruction mostly depends on its operation. A batch with
        # prompts of equal length would therefore contain only one operation.
        "batching": "fixed",
        "learning_rate": 3e-3,
        "lr_schedule": "cosine",
        "warmup_steps": 10,
        "timestep_density": "shifted",
        "sigma_floor": 0.3,
        "ema_decay": 0.98,
        "checkpoint_every": 100,
    },
    "cache": {"batch_size": 32},
    "sample": {"num_inference_steps": 12, "batch_size": 32},
}


@hookimpl
def qframe_components() -> list[Component]:
    """Return the embedded model, its data set, and the command that trains a LoRA with both."""
    return [
        Component(
            "model",
            "shapes",
            "qframe_shapes.files:model_folder",
            defaults=_DEFAULTS,
            summary="tiny, trained on shapes",
        ),
        Component(
            "source",
            "shapes",
            "qframe_shapes.source:ShapesSource",
            options="qframe_shapes.options:ShapesOptions",
            summary="procedural scenes of coloured shapes, unlimited",
        ),
        Component(
            "command",
            "demo",
            "qframe_shapes.demo:demo",
            summary="Train a LoRA on the embedded model, and sample with and without it.",
        ),
    ]
