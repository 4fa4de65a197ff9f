"""The command group `qframe bench`, which has one command for each benchmark that a plugin registers."""

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
