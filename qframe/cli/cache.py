"""`qframe cache`: encode a data set ahead of training, and check what is stored."""

from __future__ import annotations

from pathlib import Path

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, SET, announce, options, resolve
from qframe.errors import CacheError, ConfigError


@click.group()
def cache() -> None:
    """Encoded examples: build them ahead of training, check them."""


@cache.command()
@options(FAMILY, MODEL, DATA)
@click.option("--output", metavar="DIR", help="The run's folder; the cache is where a run of it would look.")
@options(CONFIG, SET)
def build(
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Encode what is not in the cache yet. `qframe train` does the same before its first step."""
    config = resolve(family, config_file, overrides, model=model, data=data, output=output).config
    if not config.cache.enabled:
        raise ConfigError("cache.enabled is false, so there is nothing to build", "Set it to true.")
    announce(config, data=True)

    from qframe.cli.progress import terminal_progress
    from qframe.train.trainer import Trainer

    examples = Trainer(config, progress=terminal_progress()).cache()
    click.echo(f"{len(examples)} examples are ready")


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/cache"))
@click.option("--repair", is_flag=True, help="Take damaged entries out; the next build encodes them anew.")
def verify(folder: Path, repair: bool) -> None:
    """Read every entry of the cache in FOLDER [default: runs/cache] and compare its checksum.

    Damaged entries are named, and the exit code is 3 unless they are repaired.
    """
    from qframe.cache import Cache
    from qframe.cli.progress import terminal_progress

    if not (folder / "shards").is_dir():
        raise CacheError(f"{folder}: there is no cache", "Give the folder that cache.dir names, or RUNS/cache.")
    with Cache(folder) as opened:
        entries = opened.stats().entries
        damages = opened.verify(terminal_progress())
        for damage in damages:
            click.echo(str(damage))
        if damages and repair:
            opened.repair(damages)
            click.echo(f"{folder}: {len(damages)} damaged of {entries} entries were taken out")
    if damages and not repair:
        raise CacheError(f"{folder}: {len(damages)} of {entries} entries are damaged", "--repair takes them out.")
    if not damages:
        click.echo(f"{folder}: all {entries} entries are whole")
