"""The command `qframe bench train` and its options. torch is imported when the command runs."""

from __future__ import annotations

import json

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, SET, announce, examples, options, resolve

_HARD = "--set recipe.min_area=65536 --set recipe.max_area=65536 --set train.batch_size=4"


@click.command(
    epilog=examples(
        "qframe bench train                                   embedded model, pictures of 64 x 64: the hardest case",
        f"qframe bench train {_HARD}",
        "qframe bench train --family qwen-edit --model DIR --data pictures/ --set device=cuda",
    ),
)
@options(FAMILY, MODEL, DATA, CONFIG, SET)
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of each contestant.")
@click.option(
    "--examples", "count", type=click.IntRange(min=1), default=32, show_default=True, help="Examples to encode."
)
@click.option("--reading/--no-reading", default=True, show_default=True, help="Also read examples of 11 MB.")
@click.option(
    "--index",
    type=click.IntRange(min=0),
    default=1_000_000,
    show_default=True,
    help="Entries of the index; 0: no index.",
)
@click.option("--check", is_flag=True, help="Exit with code 1 if a ratio exceeds its limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def train(
    family: str | None,
    model: str | None,
    data: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    repeats: int,
    count: int,
    reading: bool,
    index: int,
    check: bool,
    as_json: bool,
) -> int:
    """Measure what a training step takes in addition to its forward pass, backward pass and optimizer.

    Three contestants take steps over the first batch of a run: the training loop with cached examples, the training
    loop with examples that are encoded live, and the network with its optimizer alone. Then examples of the size that
    a published model has are read from a cache, and compared with reading the same bytes. Finally an index of a million
    entries is opened. Contestants run in turns; on a CPU the processor time of this process counts.
    """
    config = resolve(family or "qwen-edit", config_file, overrides, model=model, data=data).config
    if not as_json:
        announce(config, data=True)

    import attrs

    from qframe_bench.training.steps import compare

    found = compare(config, repeats=repeats, examples=count, read=reading, entries=index)
    click.echo(json.dumps(attrs.asdict(found), indent=2) if as_json else str(found))
    return int(check and not found.kept)
