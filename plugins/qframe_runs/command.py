"""The command `qframe runs`, which lists the training runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import examples

if TYPE_CHECKING:
    from qframe_runs.reading import FoundRun


@click.command(epilog=examples("qframe runs", "qframe runs /data/experiments", "qframe runs runs/mine --json"))
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print the runs as a JSON list.")
def runs(folder: Path, as_json: bool) -> None:
    """List the training runs in FOLDER (by default runs/), or the run that FOLDER is.

    Each run is running, finished, stopped (by a signal, or killed) or failed. Only the folders of the runs are read, so
    that this does not disturb a run.
    """
    from qframe_runs.reading import find_runs

    found = find_runs(folder)
    if as_json:
        click.echo(json.dumps([run.as_json() for run in found], indent=1))
        return
    if not found:
        click.echo(f"There is no run in {folder}.")
    width = max((len(str(run.folder)) for run in found), default=0)
    for run in found:
        click.echo(f"{run.folder!s:<{width}}  {_line(run)}")
        if run.error and run.state != "finished":
            click.echo(f"{'':<{width}}  {_plain(run.error.splitlines()[0])}")
        click.echo(f"{'':<{width}}  {_plain(run.command)}")


def _line(run: FoundRun) -> str:
    from qframe.progress import duration

    of = "" if run.steps is None else f" of {run.steps}"
    parts = [f"{run.state:<8}", f"step {run.step}{of}"]
    parts += [] if run.loss is None else [f"loss {run.loss:.4g}"]
    parts += [] if run.validation_loss is None else [f"val_loss {run.validation_loss:.4g}"]
    parts += [] if run.seconds_left is None else [f"{duration(run.seconds_left)} left"]
    return "  ".join(parts)


def _plain(text: str) -> str:
    """Replace characters that would change a terminal: a folder may come from anybody."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
