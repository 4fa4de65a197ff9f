"""The command `qframe bench sample` and its options. torch is imported when the command runs."""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

from qframe_bench.sampling.settings import HEAD, Settings


@click.command()
@click.option("--family", type=click.Choice(["qwen-image", "qwen-edit"]), default="qwen-edit", show_default=True)
@click.option("--size", type=click.IntRange(min=32), default=192, show_default=True, help="Sides of the picture.")
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Sampling steps.")
@click.option(
    "--guidance/--no-guidance", default=True, show_default=True, help="Compute two forward passes a step, or one."
)
@click.option(
    "--width", type=click.IntRange(min=HEAD), default=512, show_default=True, help="Width of the transformer."
)
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True, help="Blocks of the transformer.")
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of each contestant.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def sample(as_json: bool, **options: Any) -> None:
    """Compare a sampling run with its forward passes alone, and with diffusers' pipeline on the same work.

    Encoder and codec are those of the embedded model, the transformer is random. Contestants run in turns; on a CPU the
    processor time of this process counts.
    """
    settings = Settings(**options)
    if settings.width % HEAD or settings.size % 32:
        raise click.BadParameter(f"width must be a multiple of {HEAD}, size one of 32")
    from qframe_bench.sampling.runs import compare

    found = compare(settings)
    click.echo(json.dumps(attrs.asdict(found), indent=2) if as_json else str(found))
