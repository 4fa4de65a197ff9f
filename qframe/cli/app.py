"""The command `qframe` itself, with the commands of the core; the other commands come from plugins.

Each command has a module of its own, which imports torch only when the command runs.
"""

from __future__ import annotations

import click

from qframe.cli.compose import compose
from qframe.cli.config import config
from qframe.cli.plugins import plugins
from qframe.cli.sample import sample
from qframe.cli.shared import PluginGroup, examples
from qframe.cli.train import train
from qframe.plugins.distribution import DISTRIBUTION

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(
    cls=PluginGroup,
    kind="command",
    context_settings=_CONTEXT,
    epilog=examples(
        "qframe demo                                  train a LoRA and look at what it learned",
        "qframe train --family qwen-edit              the same, step by step",
        'qframe sample --family qwen-edit --image in.png --prompt "make the circle blue" --output out.png',
        "qframe plugins list                          families and components that can be chosen",
    ),
)
@click.version_option(package_name=DISTRIBUTION, prog_name="qframe")
@click.option("--debug", is_flag=True, help="Show where an error happened. May stand anywhere.")
def app(debug: bool) -> None:
    """Train and sample families of diffusion models.

    Without --model and --data, a tiny model and a data set that come with qframe are used: everything can be
    tried in minutes, without a GPU or a network.
    """


for command in (train, sample, compose, config, plugins):
    app.add_command(command)
