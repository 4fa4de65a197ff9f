"""The command group `qframe bench`: each benchmark that a plugin registers is one of its commands."""

from __future__ import annotations

import click

from qframe.cli.shared import PluginGroup, examples


@click.group(
    cls=PluginGroup,
    kind="benchmark",
    heading="Benchmarks",
    epilog=examples(
        "qframe bench train                           a training step, cached examples, their index",
        "qframe bench sample                          a sampling run, against diffusers' pipeline",
        "qframe bench transformer                     packed batches against diffusers, on this machine",
        "qframe bench transformer --help              its options",
    ),
)
def bench() -> None:
    """Measure what qframe promises about time and memory, side by side in one run."""
