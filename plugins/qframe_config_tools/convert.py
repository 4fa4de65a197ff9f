"""The command `qframe config convert`, which makes a configuration of another trainer's file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import NEW_CONFIG, examples, refuse_existing, registry

if TYPE_CHECKING:
    from qframe_config_tools.draft import Draft


@click.command(
    epilog=examples(
        "qframe config convert job.yaml",
        "qframe config convert train.sh --output run.toml",
        "qframe config convert config.json --family qwen-edit",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--family", metavar="NAME", help="The task [default: what the file says].")
@NEW_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def convert(file: Path, family: str | None, output: Path, as_json: bool) -> None:
    """Make a configuration of FILE, which another trainer reads, and say what cannot be expressed.

    Known are job files of ai-toolkit, data sets and arguments of kohya's programs, config.json and
    multidatabackend.json of SimpleTuner, configurations of OneTrainer, and command lines of diffusers' scripts.
    """
    import json

    from qframe.config.writing import create_file
    from qframe_config_tools import finish

    refuse_existing(output)
    plugins = registry()
    draft = understood(file)
    text = finish.finish(draft, family, plugins)
    create_file(output, text)
    if as_json:
        chosen = next(line for line in text.splitlines() if line.startswith("family")).split('"')[1]
        click.echo(json.dumps(finish.as_json(draft, chosen, str(output)), indent=2, default=str))
        return
    for line in finish.report(draft):
        click.echo(line)
    click.echo(f"written   {output}")
    click.echo(f"check     qframe data check --config {shlex.quote(str(output))}")
    click.echo(f"try       qframe train --config {shlex.quote(str(output))} --dry-run")


def understood(file: Path) -> Draft:
    """Return the draft of a file. Raises ConfigError if it cannot be read, or is that of no known program."""
    from qframe_config_tools import ai_toolkit, diffusers_scripts, kohya, onetrainer, simpletuner
    from qframe_config_tools.draft import Draft
    from qframe_config_tools.reading import read_given

    given = read_given(file)
    programs = {
        "ai-toolkit": ai_toolkit.understand,
        "kohya": kohya.understand,
        "SimpleTuner": simpletuner.understand,
        "OneTrainer": onetrainer.understand,
        "diffusers": diffusers_scripts.understand,
    }
    names = {"kohya": "kohya's programs", "diffusers": "diffusers' scripts"}
    draft = Draft(program=names.get(given.program, given.program), file=file)
    programs[given.program](given.content, draft)
    return draft
