"""What this plugin offers. Imports no torch."""

from qframe import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """The embedded checkpoint and its data set."""
    return [
        Component("model", "shapes", "qframe_shapes.files:checkpoint_folder", summary="tiny, trained on shapes"),
        Component(
            "source",
            "shapes",
            "qframe_shapes.source:ShapesSource",
            options="qframe_shapes.options:ShapesOptions",
            summary="procedural scenes of coloured shapes, unlimited",
        ),
    ]
