"""`qframe data check`: what is wrong with a data set, and what training on it will look like."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, SET, examples, options, resolve
from qframe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qframe.config.schema import TrainConfig
    from qframe.preflight.data_check import Report

_MOST_SHAPES = 20
_BAR = 40


@click.group()
def data() -> None:
    """Data sets: check one before it is trained on."""


@data.command(
    epilog=examples(
        "qframe data check --family qwen-edit --model DIR --data pictures/ --sheet sheet.png",
        "qframe data check --config run.toml --set train.batching=packed --set train.tokens_per_batch=16384",
    )
)
@options(FAMILY, MODEL, DATA, CONFIG, SET)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object, and no progress.")
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png", help="Draw what is seen.")
@click.option("--headers", is_flag=True, help="Read headers alone: faster, but damaged pictures and empty masks pass.")
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
    """Read everything, and report every problem in one table.

    Then sizes after geometry, and how many tokens a forward pass has, valid and padded, under this configuration.
    Loads no weights and changes nothing. The exit code is 3 if there is an error.
    """
    config = resolve(family, config_file, overrides, model=model, data=data).config
    if sheet is not None and sheet.exists():
        raise ConfigError(f"--sheet {sheet}: there is a file already", "Give another name, or move it away.")

    from qframe.cli.progress import terminal_progress
    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe.files.storage import write_file
    from qframe.plugins.registry import load_registry
    from qframe.preflight.data_check import check_data
    from qframe.preflight.data_preview import preview_sheet
    from qframe.progress import SILENT

    plugins = load_registry()
    composition = compose(config, plugins)
    source = open_source(config, plugins)
    progress = SILENT if as_json else terminal_progress()
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
    warnings = len(report.findings) - report.errors
    if report.errors or (strict and warnings):
        raise DataError(
            f"{_counted(report.errors, 'error')} and {_counted(warnings, 'warning')} in {report.total} records; "
            f"{len(report.whole)} can be used",
            "Training takes the data set whole or not at all: correct these, or take them out.",
        )


def _lines(report: Report, train: TrainConfig) -> Iterator[str]:
    if report.findings:
        rows = [(found.severity, found.kind, found.origin, found.message) for found in report.findings]
        widths = [min(max(len(row[column]) for row in rows), 60) for column in range(3)]
        for row in rows:
            yield "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[3]])
        yield ""
    yield f"{len(report.whole)} of {report.total} records can be used"
    if report.shapes:
        yield ""
        yield "sizes of targets after geometry"
        yield from _histogram(report)
    if report.tokens is not None:
        yield ""
        yield from _token_lines(report, train)


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
    share = tokens.padded / (tokens.valid + tokens.padded)
    yield f"a forward pass, train.batching = {train.batching!r}, mean of {_counted(tokens.batches, 'batch', 'batches')}"
    yield f"  samples        {tokens.samples:.1f}"
    yield f"  valid tokens   {tokens.valid:.0f}, from {tokens.smallest} to {tokens.largest}"
    yield f"  padded tokens  {tokens.padded:.0f} ({share:.1%} of all that are computed)"
    if train.gradient_accumulation > 1:
        yield f"a step has {train.gradient_accumulation} of them"


def _as_json(report: Report) -> dict[str, object]:
    import attrs

    return {
        "records": report.total,
        "usable": len(report.whole),
        "findings": [attrs.asdict(found) for found in report.findings],
        "shapes": [{"height": size[0], "width": size[1], "count": count} for size, count in report.shapes],
        "tokens": None if report.tokens is None else attrs.asdict(report.tokens),
    }


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
