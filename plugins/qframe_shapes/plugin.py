"""What this plugin offers. Imports no torch."""

from qframe import Component, hookimpl

# Found by trying: on this model they teach a new operation in about a minute on two CPU cores.
_DEFAULTS = {
    # Its matrices are too small to share: a second thread gains a tenth, and on a busy machine costs a multiple.
    "threads": 1,
    "lora": {"rank": 16, "targets": ["attention+mlp"]},
    "train": {
        "max_steps": 400,
        "batch_size": 16,
        # All pictures have one size, and how long an instruction is tells which operation it is: a batch of equal
        # lengths would show one operation alone.
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
    """The embedded model, its data set, and the command that trains on both."""
    return [
        Component(
            "model",
            "shapes",
            "qframe_shapes.files:checkpoint_folder",
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
