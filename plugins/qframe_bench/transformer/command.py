"""The command `qframe bench transformer` and its options. torch is imported when the command runs."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import attrs
import click

from qframe_bench.transformer.settings import Settings

_FULL = {"width": 3072, "head": 128, "layers": 60, "text_width": 3584}
"""The published size, from transformer/config.json of Qwen/Qwen-Image."""
_QUICK: dict[str, Any] = {"s": (8,), "layers": 1}


def _sizes(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", value):
        raise click.BadParameter(f"expected numbers with commas between, e.g. 8,16, got {value!r}")
    return tuple(map(int, value.split(",")))


@click.command()
@click.option("--s", default="8,16", show_default=True, callback=_sizes, help="Sides of the small pictures, in tokens.")
@click.option("--width", type=click.IntRange(min=64), default=128, show_default=True, help="Width of the streams.")
@click.option("--head", type=click.IntRange(min=16), default=64, show_default=True, help="Channels of a head.")
@click.option("--layers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--text-width", type=click.IntRange(min=1), default=256, show_default=True, help="Width of the text tokens."
)
@click.option("--full", is_flag=True, help="The published size: 60 layers, width 3072 (40 GB in bfloat16).")
@click.option("--quick", is_flag=True, help="Measure a small network: s = 8, one layer.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each contestant.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--gradient-checkpointing", is_flag=True, help="Use it in all contestants.")
@click.option("--profile", is_flag=True, help="Also print operations per second, and the time of each component.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def transformer(full: bool, quick: bool, as_json: bool, **options: Any) -> None:
    """Compare packed batches of mixed shapes with diffusers: a forward and a backward pass with a LoRA.

    The batch has four samples. Two of them have two pictures of s x s tokens, the other two have two pictures of
    2s x 2s. All prompts have 77 tokens, or lengths are mixed. Weights are random. Contestants run in turns; on a CPU
    the processor time of this process counts. After that, batches with the same number of tokens in 1, 2, 4, 8 and 16
    different shapes are measured.
    """
    settings = Settings(**options | (_FULL if full else {}) | (_QUICK if quick else {}))
    if settings.width % settings.head or settings.head % 16:
        raise click.BadParameter(
            f"width {settings.width} must be a multiple of head {settings.head}, and head one of 16"
        )
    from qframe.compose import find_device
    from qframe_bench.transformer.tables import as_text, run

    find_device("--device", settings.device)
    found = run(settings, tell=partial(click.echo, err=True))
    click.echo(json.dumps(attrs.asdict(found), indent=2) if as_json else as_text(found))
