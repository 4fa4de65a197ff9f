"""Registers the command group `qframe bench` and its benchmarks with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the command group `bench`, and the benchmarks that are its commands."""
    return [
        Component(
            "command",
            "bench",
            "qframe_bench.group:bench",
            summary="Measure what qframe promises about time and memory.",
        ),
        Component(
            "benchmark",
            "train",
            "qframe_bench.training.command:train",
            summary="a training step against its passes and optimizer alone, and live; "
            "examples read; a large index opened",
        ),
        Component(
            "benchmark",
            "encode",
            "qframe_bench.training.encode_command:encode",
            summary="a folder of photographs encoded with pictures opened in threads, and one at a time",
        ),
        Component(
            "benchmark",
            "quantise",
            "qframe_bench.quantising.command:quantise",
            summary="the first and the second start with quantised weights: time and host memory",
        ),
        Component(
            "benchmark",
            "sample",
            "qframe_bench.sampling.command:sample",
            summary="a sampling run against its forward passes alone, and against diffusers: time and memory",
        ),
        Component(
            "benchmark",
            "transformer",
            "qframe_bench.transformer.command:transformer",
            summary="packed batches of mixed shapes against diffusers: time and memory, forward and backward",
        ),
    ]
