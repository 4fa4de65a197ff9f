"""`qframe config show`: every key, its value, where it comes from, and what it means. Plugins add further commands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import click

from qframe.cli.shared import (
    CONFIG,
    DATA,
    DEVICE,
    DTYPE,
    FAMILY,
    MODEL,
    OFFLOAD,
    SET,
    PluginGroup,
    examples,
    options,
    resolve,
)


@click.group(cls=PluginGroup, kind="config-command")
def config() -> None:
    """Configurations: see the one that a run would have, make one of another program's file, help an editor."""


@config.command(
    epilog=examples(
        "qframe config show --family qwen-edit",
        "qframe config show --family qwen-edit --set train.max_steps=200 --toml > run.toml",
    )
)
@options(FAMILY, CONFIG, SET, MODEL, DATA, DEVICE, DTYPE, OFFLOAD)
@click.option("--json", "as_json", is_flag=True, help="Print key, value, source and meaning as JSON.")
@click.option("--toml", is_flag=True, help="Print only the configuration, as a file that --config takes.")
def show(
    family: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    data: str | None,
    as_json: bool,
    toml: bool,
) -> None:
    """Show every key with its value, where the value comes from, and its meaning."""
    from qframe.config import dump_config
    from qframe.config.strict import show as as_text
    from qframe.config.writing import SCHEMA_LINE

    resolved = resolve(family, config_file, overrides, model=model, data=data)
    if toml:
        click.echo(f"{SCHEMA_LINE}\n{dump_config(resolved.config)}", nl=False)
        return
    if as_json:
        import json

        told = [
            {"key": key, "value": value, "source": resolved.sources[key], "meaning": meaning}
            for key, value, meaning in _rows(resolved.config, ())
        ]
        click.echo(json.dumps(told, indent=2, default=str))
        return
    rows = [
        (key, "-" if value is None else as_text(value), resolved.sources[key], meaning)
        for key, value, meaning in _rows(resolved.config, ())
    ]
    widths = [min(max(len(row[column]) for row in rows), 44) for column in (0, 1, 2)]
    for _, group in groupby(rows, key=lambda row: row[0].rpartition(".")[0]):
        for key, value, source, meaning in group:
            click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {source:<{widths[2]}}  {meaning}".rstrip())
        click.echo()


def _rows(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    import attrs

    from qframe.config.strict import fields_of

    for name, field in fields_of(type(value)).items():
        inner = getattr(value, name)
        if attrs.has(type(inner)) or (name in ("options", "recipe") and inner is None):
            continue  # a table is shown below its neighbours; settings that no plugin declares are left out
        yield ".".join((*key, name)), inner, str(field.metadata.get("help", ""))
    for name in fields_of(type(value)):
        if attrs.has(type(getattr(value, name))):
            yield from _rows(getattr(value, name), (*key, name))
