"""Rehearse a run with a model of the published size on a CPU, and measure the memory and the time of each part.

python -m tests.full_size [--blocks N] [--compare | --stream] [--folder DIR] [--json FILE]

It writes a stand-in for Qwen-Image-Edit (57 GB, nearly all of it holes in sparse files), and runs qframe on it: a dry
run, loading, encoding two pictures, a LoRA step with gradient checkpointing, resuming, a guided sampling step, merging
one block, and with --compare a comparison with diffusers' pipeline. Each part is a process of its own, which is
watched. The table shows its processor time, and the most memory that it had, beside qframe's forecast. Memory is
anonymous, or it is a mapping of files, which the system may drop and read again; the column "forecast" for anonymous
memory is what qframe forecasts, and in addition what the imports alone take.

With --stream, pictures are encoded, a LoRA step and a guided sampling step are made on an imitated card, to which the
weights are streamed, block by block, from their mapped files. There is no forecast for these parts. What lies on the
card lies in anonymous memory of the process, and is shown in a column of its own, too.

The exit code is 1 if a part fails, leaves something wrong, or takes more than 12 GiB of anonymous memory, or 8 GiB
where weights are streamed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from qframe_bench.measuring import table
from tests.full_size.parts import IMPORTS, Part, Place, card_of, parts, streamed_parts
from tests.full_size.stand_in import Depth
from tests.watched import Watched, run_watched

MOST, MOST_STREAMED = 12 * 2**30, 8 * 2**30
"""The anonymous memory that no part may exceed, and that no part may exceed which streams weights."""
LIMIT = 1800.0
"""The seconds after which a part is stopped."""
GIB = 2**30
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


@attrs.frozen(kw_only=True)
class Row:
    """The result of one part.

    Attributes:
        part: The name of the part.
        wall: Seconds on the clock.
        processor: Seconds of processor time.
        anonymous: The most bytes of anonymous memory.
        mapped: The most bytes of mapped files in memory.
        forecast_own: What qframe forecasts of anonymous memory; None where it forecasts nothing.
        forecast_mapped: The bytes of the weights that it expects to be mapped.
        card: The most bytes on the imitated card; None without one.
        problems: What went wrong, one line each.
    """

    part: str
    wall: float
    processor: float
    anonymous: int
    mapped: int
    forecast_own: int | None
    forecast_mapped: int | None
    card: int | None
    problems: tuple[str, ...]


def rehearse(place: Place, *, compare: bool, told: Callable[[str], None]) -> list[Row]:
    """Run all parts one after another, and return a row for each.

    After a part that failed, the parts that need its results fail, too; they are run nevertheless.

    Args:
        place: The folder, which is empty, and the depth of the model.
        compare: Whether the last part compares with diffusers' pipeline.
        told: Is told about each part in a line of text.
    """
    rows: list[Row] = []
    forecast: dict[str, dict[str, int]] = {}
    for part in streamed_parts() if place.streams else parts(compare=compare):
        told(f"{part.name} ...")
        watched = _run(part.command(place))
        rows.append(_row(part, place, watched, forecast, rows))
        for problem in rows[-1].problems:
            told(f"  {problem}")
        if place.config.exists() and not forecast and not place.streams:
            asked = _run(("-m", "tests.full_size.inside", "forecast", str(place.folder)))
            if asked.status == 0:
                forecast = json.loads(asked.output.splitlines()[-1])
            else:
                told(f"  no forecast: {_end(asked)}")
    return rows


def _run(arguments: Sequence[str]) -> Watched:
    return run_watched([sys.executable, *arguments], limit=LIMIT, environment=_ENVIRONMENT)


def _row(part: Part, place: Place, watched: Watched, forecast: dict[str, dict[str, int]], before: Sequence[Row]) -> Row:
    problems: list[str] = []
    if watched.status != 0:
        how = "was stopped: its time was up" if watched.status is None else f"ended with {watched.status}"
        problems.append(f"{part.name} {how}: {_end(watched)}")
    else:
        problems += part.check(place, watched.output)
    if watched.anonymous > (MOST_STREAMED if place.streams else MOST):
        problems.append(f"{part.name} took {watched.anonymous / GIB:.1f} GiB of anonymous memory")
    expected = forecast.get(part.stage or "")
    imports = next((row.anonymous for row in before if row.part == IMPORTS), 0)
    return Row(
        part=part.name,
        wall=round(watched.wall, 1),
        processor=round(watched.processor, 1),
        anonymous=watched.anonymous,
        mapped=watched.mapped,
        forecast_own=None if expected is None else expected["own"] + imports,
        forecast_mapped=None if expected is None else expected["mapped"],
        card=card_of(watched.output).get("card"),
        problems=tuple(problems),
    )


def _end(watched: Watched) -> str:
    return " / ".join(watched.output.strip().splitlines()[-4:])


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of text."""

    def gib(size: int | None) -> str:
        return "" if size is None else f"{size / GIB:.2f}"

    headings = ["part", "processor s", "wall s", "anonymous GiB", "forecast", "mapped GiB", "forecast", "card GiB", ""]
    cells = [
        [
            row.part,
            f"{row.processor:.0f}",
            f"{row.wall:.0f}",
            gib(row.anonymous),
            gib(row.forecast_own),
            gib(row.mapped),
            gib(row.forecast_mapped),
            gib(row.card),
            "WRONG" if row.problems else "",
        ]
        for row in rows
    ]
    return table(headings, cells)


def machine(place: Place) -> dict[str, Any]:
    """Return what the result was measured on and with."""
    import torch

    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "blocks": place.depth.blocks,
        "cores": os.cpu_count(),
        "memory": pages * size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "disk": sum(512 * file.stat().st_blocks for file in place.model.rglob("*") if file.is_file()),
        "model": sum(file.stat().st_size for file in place.model.rglob("*") if file.is_file()),
    }


def run(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, rehearse, and print the table. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.full_size", description=__doc__.partition("\n")[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--compare", action="store_true", help="compare with diffusers' pipeline in the end")
    how.add_argument("--stream", action="store_true", help="stream the weights to an imitated card")
    parser.add_argument("--blocks", type=int, default=60, help="blocks of the transformer, of 60")
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to work in, which is kept [default: a temporary one]"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        place = Place(folder.resolve(), Depth.short(asked.blocks), streams=asked.stream)
        rows = rehearse(place, compare=asked.compare, told=partial(click.echo, err=True))
        about = machine(place)
    click.echo(as_table(rows))
    most, minutes = max(row.anonymous for row in rows), sum(row.wall for row in rows) / 60
    click.echo(f"\n{asked.blocks} blocks, {minutes:.0f} minutes, at most {most / GIB:.1f} GiB of anonymous memory")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"machine": about, "parts": list(map(attrs.asdict, rows))}, indent=2) + "\n")
    wrong = [problem for row in rows for problem in row.problems]
    click.echo("\n".join(wrong) if wrong else "everything is as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run())
