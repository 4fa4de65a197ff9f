"""The command `qframe data check`, which prints what is wrong with a data set and how large its batches will be."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, PROGRESS, SET, examples, options, resolve, terminal_progress
from qframe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qframe.config.schema import TrainConfig
    from qframe_data_check.report import Finding, Report

_MOST_SHAPES = 20
"""The most sizes that are printed in a line of their own."""
_MOST_PLACES = 10
"""The most files or rows that are named for one cause."""
_BAR = 40
"""The length in characters of the longest bar."""


@click.group()
def data() -> None:
    """Data sets: check one before it is trained on."""


@data.command(
    epilog=examples(
        "qframe data check --family qwen-edit --model DIR --data pictures/ --sheet sheet.png",
        "qframe data check --config run.toml --set train.batching=packed --set train.tokens_per_batch=16384",
    )
)
@options(FAMILY, MODEL, DATA, CONFIG, SET, PROGRESS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no progress.")
@click.option(
    "--sheet", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png", help="Draw a contact sheet of it."
)
@click.option(
    "--headers", is_flag=True, help="Read only headers: faster, but damaged pictures and empty masks are not found."
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
def check(
    family: str | None,
    model: str | None,
    data: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    sheet: Path | None,
    headers: bool,
    strict: bool,
) -> None:
    """Read a whole data set, and report every problem in one table, in which one cause is one row.

    Below it are the sizes of the targets after geometry, and how many tokens a forward pass of training has
    under this configuration, valid ones and padding. The command loads no weights and changes nothing. The exit code
    is 3 if there is an error.
    """
    config = resolve(family, config_file, overrides, model=model, data=data).config
    if sheet is not None and sheet.exists():
        raise ConfigError(f"--sheet {sheet}: there is a file already", "Give another name, or move it away.")

    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe.files.storage import write_file
    from qframe.plugins.registry import load_registry
    from qframe_data_check.check import check_data
    from qframe_data_check.preview import preview_sheet

    plugins = load_registry()
    composition = compose(config, plugins)
    source = open_source(config, plugins)
    progress = terminal_progress(as_json=as_json)
    report = check_data(source, composition, config.train, decode=not headers, progress=progress)
    if as_json:
        click.echo(json_module.dumps(_as_json(report), indent=1))
    else:
        for line in _lines(report, config.train):
            click.echo(line)
    if sheet is not None and (picture := preview_sheet(report, composition.recipe)) is not None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        write_file(sheet, buffer.getvalue())
        if not as_json:
            click.echo(f"pictures  {sheet}")
    warnings = report.count("warning")
    if report.errors or (strict and warnings):
        raise DataError(
            f"{_counted(report.errors, 'error')} and {_counted(warnings, 'warning')} in {report.total} records; "
            f"{len(report.usable)} can be used",
            "Training refuses a data set with errors: correct these records, or take them out.",
        )


def _lines(report: Report, train: TrainConfig) -> Iterator[str]:
    """The lines that the command prints: the table of findings, the sizes, the token figures."""
    from qframe_data_check.report import by_cause

    if report.findings:
        causes = by_cause(report.findings)
        rows = [(*_named(found), found[0].cause if len(found) > 1 else found[0].message) for found in causes]
        widths = [min(max(len(row[column]) for row in rows), 60) for column in range(3)]
        for row, found in zip(rows, causes, strict=True):
            yield "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[3]])
            if len(found) > 1:
                yield f"         {_places(found)}"
        yield ""
    yield f"{len(report.usable)} of {report.total} records can be used"
    if report.shapes:
        yield ""
        yield "sizes of targets after geometry"
        yield from _histogram(report)
    if report.tokens is not None:
        yield ""
        yield from _token_lines(report, train)


def _named(found: Sequence[Finding]) -> tuple[str, str, str]:
    """The first columns of a row: severity, kind, and the place if there is one, else how many places there are."""
    return found[0].severity, found[0].kind, found[0].origin if len(found) == 1 else f"{len(found)} times"


def _places(found: Sequence[Finding]) -> str:
    """The places of the findings of one cause, each with its detail."""
    shown = [f"{one.origin} ({one.detail})" if one.detail else one.origin for one in found[:_MOST_PLACES]]
    rest = f" and {len(found) - len(shown)} more (--json lists all)" if len(found) > len(shown) else ""
    return ", ".join(shown) + rest


def _histogram(report: Report) -> Iterator[str]:
    names = [f"{width} x {height}" for (height, width), _ in report.shapes[:_MOST_SHAPES]]
    most = report.shapes[0][1]
    for name, (_, count) in zip(names, report.shapes, strict=False):
        yield f"  {name:>{max(map(len, names))}}  {count:>7}  {'#' * max(1, round(_BAR * count / most))}"
    rest = report.shapes[_MOST_SHAPES:]
    if rest:
        yield f"  and {len(rest)} more sizes of {sum(count for _, count in rest)} records"


def _token_lines(report: Report, train: TrainConfig) -> Iterator[str]:
    tokens = report.tokens
    assert tokens is not None
    about = "" if tokens.exact else " (text in bytes: this encoder has no token counter)"
    yield f"the largest sample has {tokens.largest_sample} tokens{about}"
    if tokens.problem is not None:
        yield tokens.problem
        return
    fraction = tokens.padded / (tokens.valid + tokens.padded)
    yield f"a forward pass, train.batching = {train.batching!r}, mean of {_counted(tokens.batches, 'batch', 'batches')}"
    yield f"  samples        {tokens.samples:.1f}"
    yield f"  valid tokens   {tokens.valid:.0f}, from {tokens.smallest} to {tokens.largest}"
    yield f"  padded tokens  {tokens.padded:.0f} ({fraction:.1%} of all that are computed)"
    if train.gradient_accumulation > 1:
        yield f"a step has {train.gradient_accumulation} of them"


def _as_json(report: Report) -> dict[str, object]:
    """What the command prints with --json."""
    import attrs

    return {
        "records": report.total,
        "usable": len(report.usable),
        "findings": [{**attrs.asdict(found), "message": found.message} for found in report.findings],
        "shapes": [{"height": size[0], "width": size[1], "count": count} for size, count in report.shapes],
        "tokens": None if report.tokens is None else attrs.asdict(report.tokens),
    }


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
