"""Prints the table of the presets for cards of 24, 16, 12 and 8 GB, forecast for the published shapes.

python -m tests.full_size.cards [--model DIR]

Without --model it writes a stand-in with the shapes of Qwen-Image-Edit first, which takes about a minute. No weight is
read, and nothing is computed. docs/reference/benchmarks.md has the table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from qframe.config import load_config
from qframe.preflight.forecast import gib
from qframe_plan.planning import CARDS, Setting, planned
from tests.full_size.stand_in import Depth, write_stand_in

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("24GB", "qwen-edit-24gb.toml", ()),
    ("16GB", "qwen-edit-16gb.toml", ()),
    ("12GB", "qwen-edit-12gb.toml", ()),
    ("8GB", "qwen-edit-8gb.toml", ()),
    ("6GB", "qwen-edit-8gb.toml", ("codec.options.tiling=true",)),
)
"""The memory of a card, the preset, and further settings."""


def row(memory: str, file: str, setting: Setting) -> str:
    """Return one line of the table."""
    chosen = ", ".join(f"{choice.key.rpartition('.')[2]} {choice.value}" for choice in setting.choices)
    stages = {stage: sum(parts.values()) for needs in setting.forecast.needs.values() for stage, parts in needs.items()}
    encoding = max(stages[stage] for stage in ("encoding pictures", "encoding prompts", "preparing samples"))
    times = [card.seconds(setting.flops, setting.copied) for card in CARDS.values()]
    cells = (
        memory,
        f"`{file}`" + "".join(f" `{one}`" for one in setting.settings),
        chosen,
        gib(encoding),
        gib(stages["sampling"]),
        gib(stages["training"]),
        gib(setting.host),
        f"{setting.copies}, {setting.copied / 1e9:.0f} GB",
        *(f"{seconds:.1f} s" if seconds is not None else "" for seconds in times),
    )
    return f"| {' | '.join(cells)} |"


def run(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.full_size.cards", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder with the published shapes")
    asked = parser.parse_args(arguments)
    heads = ("card", "preset", "chosen", "encoding", "sampling", "a step", "host memory", "copies a step", *CARDS)
    with tempfile.TemporaryDirectory() as scratch:
        model = asked.model or Path(scratch) / "model"
        if asked.model is None:
            write_stand_in(model, Depth())
        click.echo(f"| {' | '.join(heads)} |")
        click.echo(f"|{'---|' * len(heads)}")
        for memory, file, settings in ROWS:
            config = load_config(CONFIGS / file, values={"model": str(model)}, overrides=settings)
            click.echo(row(memory, file, planned(config, memory, settings=settings)))


if __name__ == "__main__":
    run()
