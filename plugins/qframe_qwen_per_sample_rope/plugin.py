"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """A second network for the model folders of denoiser `qwen-image`."""
    return [
        Component(
            "denoiser",
            "qwen-per-sample-rope",
            "qframe_qwen_per_sample_rope.denoiser:PerSampleRopeDenoiser",
            options="qframe_qwen_per_sample_rope.options:PerSampleRopeOptions",
            summary="the Qwen-Image transformer in one pass over any mixture of shapes, without padding",
        ),
    ]
