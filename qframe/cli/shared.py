"""What the commands share, and the one module of `qframe.cli` that a plugin's command may import.

It has the options that choose a configuration (`FAMILY`, `MODEL`, `DATA`, `CONFIG`, `SET`) and what turns their values
into one (`resolve`), the first lines of output (`announce`), the options of a family's request (`RequestCommand`,
`opened`), progress in a terminal (`terminal_progress`) and the options that choose how it is shown (`PROGRESS`),
training in a terminal (`fit`), and a group whose commands plugins offer (`PluginGroup`). docs/guides/add-a-command.md
shows how a command uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qframe.cli.plugin_commands import PluginGroup, registry
from qframe.cli.request_options import RequestCommand, opened
from qframe.cli.training import fit
from qframe.errors import ConfigError
from qframe.files.lora_file import scaled_file
from qframe.progress.shown import CHOICES, choose_progress, chosen_progress, terminal_progress

if TYPE_CHECKING:
    from qframe.config import Resolved
    from qframe.config.schema import Config
    from qframe.plugins.hookspecs import Family
    from qframe.plugins.registry import Registry

__all__ = [
    "CONFIG",
    "DATA",
    "DEVICE",
    "DTYPE",
    "FAMILY",
    "MEMORY",
    "MODEL",
    "OFFLOAD",
    "PROGRESS",
    "SET",
    "TRAIN_SEED",
    "PluginGroup",
    "RequestCommand",
    "announce",
    "embedded_line",
    "examples",
    "fit",
    "flags",
    "licence_line",
    "opened",
    "options",
    "quiet",
    "registry",
    "resolve",
    "scaled_file",
    "terminal_progress",
]

_F = TypeVar("_F", bound=Callable[..., Any])

FAMILY = click.option("--family", metavar="NAME", help="The task; `qframe plugins list` shows them.")
MODEL = click.option("--model", metavar="DIR|HUB_ID", help="The model [default: the embedded one].")
DATA = click.option("--data", metavar="PATH", help="A folder, .jsonl, .csv or .parquet [default: the embedded set].")
MEMORY = click.option(
    "--memory", metavar="SIZE", help="How much of the GPU's memory may be used, e.g. 24GB [default: auto]."
)
_FLAGS = "qframe.flags"


def _flag(key: str, *names: str, **attributes: Any) -> Callable[[_F], _F]:
    """Return an option that sets a key; `resolve` reads its value, so that commands need no parameter for it."""

    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            context.meta.setdefault(_FLAGS, {})[key] = value

    return click.option(*names, callback=remember, expose_value=False, **attributes)


DEVICE = _flag("device", "--device", metavar="NAME", help="Where to compute, such as cuda:1 or cpu [default: auto].")
DTYPE = _flag(
    "dtype", "--dtype", type=click.Choice(["float32", "bfloat16"]), help="The dtype of weights that are not trained."
)
OFFLOAD = _flag(
    "offload", "--offload", type=click.Choice(["none", "model", "stream"]), help="What leaves the device meanwhile."
)
TRAIN_SEED = _flag("train.seed", "--seed", type=click.IntRange(min=0), help="Seed of order, noise and dropout.")
NEW_CONFIG = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("run.toml"),
    show_default=True,
    metavar="FILE",
    help="The configuration to write. A file is never overwritten.",
)
CONFIG = click.option("--config", "config_file", metavar="FILE", help="A TOML file, or the name of a bundled one.")
SET = click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set any key, e.g. train.max_steps=200. Repeatable."
)


def _quieted(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        choose_progress("none")


def _shown(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and chosen_progress() != "none":  # --quiet may stand before it or after it
        choose_progress(value)


_QUIET = click.option(
    "--quiet", "-q", is_flag=True, expose_value=False, callback=_quieted, help="Print results and errors alone."
)
_SHOW = click.option(
    "--progress",
    type=click.Choice(CHOICES),
    expose_value=False,
    callback=_shown,
    help="How progress is shown; json writes lines of JSON to stderr [default: a bar in a terminal, else lines].",
)


def PROGRESS(function: _F) -> _F:
    """Add --quiet and --progress to a command. `terminal_progress` and `announce` obey them."""
    return _QUIET(_SHOW(function))


def quiet() -> bool:
    """Whether the command that runs now is to print results and errors alone (--quiet)."""
    return chosen_progress() == "none"


def refuse_existing(output: Path) -> None:
    """Refuse a file to write that is there already, before any work is done. Raises ConfigError."""
    if output.exists():
        raise ConfigError(f"--output {output}: there is a file already", "Give another --output, or move it away.")


def examples(*lines: str) -> str:
    """Format example commands for the end of a help text; each line stays a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def options(*several: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Return one decorator that adds several click options, which the help text shows in this order."""

    def decorate(function: _F) -> _F:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate


def resolve(
    family: str | None,
    config_file: str | None,
    overrides: Iterable[str],
    *,
    model: str | None = None,
    data: str | None = None,
    output: str | None = None,
    memory: str | None = None,
    below: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return the configuration that the shared options describe, and print a note for each value that has no effect.

    Args:
        family: Value of --family.
        config_file: Value of --config.
        overrides: Values of --set.
        model: Value of --model.
        data: Value of --data.
        output: Value of --output.
        memory: Value of --memory.
        below: Further values as nested tables; they override the file and are overridden by the options.

    Raises:
        ConfigError: A key, a value or a name is wrong.
    """
    from qframe.config import resolve_config

    given: dict[str, Any] = {"model": model, "output": output, "memory": memory, "data": {"path": data}}
    for key, value in flags().items():
        section, _, name = key.rpartition(".")
        given |= {section: {name: value}} if section else {name: value}
    values = {**(below or {}), **{name: value for name, value in given.items() if value is not None}}
    resolved = resolve_config(config_file, family=family, overrides=overrides, values=values, registry=registry())
    for key in resolved.dropped:
        if not key.startswith("data."):  # everybody who trains on own data drops settings of the family's data set
            about = f"{key} of family {resolved.config.family!r}"
            click.echo(f"note: {about} is for a component that is not in use", err=True)
    return resolved


def flags() -> dict[str, Any]:
    """Return the values of --device, --dtype and the like that the present command was given, by key."""
    context = click.get_current_context(silent=True)
    found: dict[str, Any] = {} if context is None else context.meta.get(_FLAGS, {})
    return found


def embedded_line(config: Config, plugins: Registry, *, data: bool) -> str | None:
    """Return the line that says that the embedded model or data set is used; None if neither is used.

    Args:
        config: The configuration of the run.
        plugins: The registry, which knows the embedded models.
        data: Whether the command uses a data set.
    """
    model = next((c.name for c in plugins.components("model") if c.name == config.model), None)
    source = config.data.use if data and config.data.path is None else None
    used = [f"the embedded model {model!r}"] if model else []
    used += [f"the embedded data set {source!r}"] if source else []
    flags = [flag for flag, name in (("--model", model), ("--data", source)) if name]
    return f"Using {' and '.join(used)}; {' and '.join(flags)} would choose your own." if used else None


def licence_line(model: str | None, family: Family) -> str:
    """Return the line that names the licence of the weights.

    Args:
        model: Folder or hub id of the model; None means the family's default model.
        family: The family, which declares the licence.
    """
    return f"Weights: {model or family.model}, licence {family.weights_licence} (as family {family.name!r} declares)."


def announce(config: Config, *, data: bool) -> None:
    """Print the first lines of output: what is embedded, and the licence of the weights.

    Args:
        config: The configuration of the run.
        data: Whether the command uses a data set.
    """
    if quiet():
        return
    from qframe.plugins.registry import load_registry

    plugins = load_registry()
    line = embedded_line(config, plugins, data=data)
    if line:
        click.echo(line)
    click.echo(licence_line(config.model, plugins.family(config.family)))
