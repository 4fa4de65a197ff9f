"""The command `qframe report`, which writes an HTML page about training runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from qframe.cli.shared import examples


@click.command(
    epilog=examples(
        "qframe report runs/mine",
        "qframe report runs/mine --output mine.html",
        "qframe report runs/rank-8 runs/rank-32 --output ranks.html",
        "qframe report runs/mine --serve",
    )
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page [default: report.html in the run's folder; of several runs, comparison.html in the first one's].",
)
@click.option(
    "--serve", is_flag=True, help="Show the page in a browser on this machine, renewed while the run goes on."
)
def report(runs: tuple[Path, ...], output: Path | None, serve: bool) -> None:
    """Write one HTML page about a run: pictures over steps, curves, configuration, data, environment.

    The page needs no network and no other file. With several runs, it compares their curves, pictures and
    configurations. A run that is unfinished, or of an earlier version, is shown as far as it goes.
    """
    if serve:
        if output is not None:
            raise click.UsageError("--serve and --output: give one of them.")
        _serve(runs)
        return
    from qframe_report.page import write_report

    page = output or runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
    click.echo(write_report(runs, page))


def _serve(runs: tuple[Path, ...]) -> None:
    """Serve the page until Ctrl-C."""
    from qframe_report.serving import ReportServer

    with ReportServer(runs) as server:
        click.echo(f"{server.address}  (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
