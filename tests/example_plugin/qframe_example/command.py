"""The command `qframe sigmas`. Imports no torch before it runs."""

from __future__ import annotations

import click

from qframe.cli.shared import CONFIG, FAMILY, MODEL, SET, examples, options, resolve


@click.command(epilog=examples("qframe sigmas --family example-edit --steps 8"))
@options(FAMILY, MODEL, CONFIG, SET)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Sampling steps.")
@click.option("--tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Image tokens of a picture.")
def sigmas(
    family: str | None,
    model: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    steps: int,
    tokens: int,
) -> None:
    """Print the noise level at which each sampling step starts, and the last one, which is 0."""
    config = resolve(family, config_file, overrides, model=model).config

    from qframe.compose import compose

    schedule = compose(config).load().schedule  # reads no weights
    for step, sigma in enumerate(schedule.sigmas(steps, tokens).tolist()):
        click.echo(f"{step:>4}  {sigma:.4f}")
