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
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Read every entry of the cache in FOLDER and compare its checksum. Damaged entries are named; exit code 3."""
    from qframe.cache import Cache

    if not folder.is_dir():
        raise CacheError(f"{folder}: no such folder", "Give the folder that cache.dir names.")
    report = Cache(folder).verify()
    for problem in report:
        click.echo(problem)
    if report:
        raise CacheError(f"{folder}: {len(report)} damaged entries", "`qframe cache build` makes them anew.")
    click.echo(f"{folder}: every entry is whole")
