"""The command `qframe config schema`, which prints the JSON Schema of configurations."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qframe.cli.shared import examples, registry


@click.command(epilog=examples("qframe config schema", "qframe config schema --output qframe.schema.json"))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it to a file.")
def schema(output: Path | None) -> None:
    """Print the JSON Schema of configurations, with the settings of every plugin that is installed.

    Editors that know TOML, such as those with Taplo or Even Better TOML, complete and check a file whose first line
    is `#:schema ./qframe.schema.json`. A file of that name is replaced.
    """
    from qframe.files.storage import write_file
    from qframe_config_tools.schema import config_schema

    text = json.dumps(config_schema(registry()), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    write_file(output, text.encode())
    click.echo(f"written   {output}")
