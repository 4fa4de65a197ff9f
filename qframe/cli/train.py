"""`qframe train`: the trainer, with progress."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import (
    CONFIG,
    DATA,
    DEVICE,
    DTYPE,
    FAMILY,
    MEMORY,
    MODEL,
    PROGRESS,
    SET,
    TRAIN_SEED,
    announce,
    examples,
    fit,
    flags,
    options,
    quiet,
    resolve,
)
from qframe.cli.training import next_steps

if TYPE_CHECKING:
    from qframe.config.schema import Config


@click.command(
    epilog=examples(
        "qframe train --family qwen-edit",
        "qframe train --family qwen-edit --model DIR --data pictures/ --output runs/mine --set lora.rank=32",
        "qframe train --family qwen-edit --output runs/mine --resume",
        "qframe train --config runs/mine/config.toml --resume --change train.learning_rate=5e-5",
        "qframe train --config run.toml --nproc 4",
        "torchrun --nproc-per-node 4 -m qframe train --config run.toml",
    )
)
@options(FAMILY, MODEL, DATA)
@click.option("--output", metavar="DIR", help="The run's folder [default: runs/FAMILY, numbered].")
@options(DEVICE, DTYPE, TRAIN_SEED, MEMORY, CONFIG, SET)
@click.option(
    "--resume",
    metavar="[latest|PATH]",
    is_flag=False,
    flag_value="latest",
    help="Continue from a checkpoint of the run: the newest intact one, or this one.",
)
@click.option(
    "--change",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="With --resume: change this setting from here on, such as the learning rate. May be repeated.",
)
@click.option(
    "--nproc", type=click.IntRange(min=1), metavar="N", help="Train in N processes on this machine, one per GPU."
)
@click.option("--dry-run", is_flag=True, help="Print what would be loaded and whether it fits, and stop.")
@options(PROGRESS)
def train(
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    memory: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    resume: str | None,
    change: tuple[str, ...],
    nproc: int | None,
    dry_run: bool,
) -> int:
    """Train a LoRA, or with train.mode=full the whole denoiser.

    Encodes the data set (once, unless cache.enabled is false), samples, trains, samples again, and writes weights,
    checkpoints and a contact sheet into the run's folder. `qframe config show` lists everything that --set can change.
    """
    if nproc is not None and nproc > 1 and not dry_run:
        return _launch(nproc)

    from qframe.train.distributed import joined

    with joined() as processes, contextlib.ExitStack() as muted:
        if not processes.first:
            muted.enter_context(contextlib.redirect_stdout(muted.enter_context(open(os.devnull, "w"))))
        changed = _changed(change, resume)
        overrides += tuple(item for item in change if "=" in item)
        resolved = resolve(family, config_file, overrides, model=model, data=data, output=output, memory=memory)
        config = resolved.config
        announce(config, data=True)
        if dry_run:
            rehearse(config, nproc or processes.world)
            return 0
        result = fit(resolved, resume, processes, change=changed)
        click.echo(f"weights   {result.weights}")
        if result.sheet:
            click.echo(f"pictures  {result.sheet}")
        if not quiet():
            for about, command in next_steps(config, result.folder):
                click.echo(f"{about:<9} {command}")
    return 0


def _changed(change: tuple[str, ...], resume: str | None) -> tuple[str, ...]:
    """The keys that --change names. Raises ConfigError if one cannot change, or if no run is resumed."""
    if not change:
        return ()
    from qframe.errors import ConfigError
    from qframe.train.resume import check_changeable

    if resume is None:
        raise ConfigError("--change goes with --resume", "A new run takes its settings by --set.")
    keys = tuple(item.partition("=")[0].strip() for item in change)
    check_changeable(keys)
    return keys


_KEYS = {"seed": "train.seed"}
"""The keys that flags set, where they have another name."""


def _launch(count: int) -> int:
    """Run this command again in `count` processes that train together. Returns the exit code."""
    from qframe.progress.shown import chosen_progress
    from qframe.train.launch import launch

    context = click.get_current_context()
    arguments = []
    for option in context.command.params:
        name = option.name
        assert name is not None  # every option has a name
        if name == "nproc" or context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if name == "quiet":
            arguments += ["--quiet"]
        elif name == "progress":
            arguments += [f"--progress={chosen_progress()}"]
        else:
            value = context.params[name] if name in context.params else flags()[_KEYS.get(name, name)]
            arguments += [f"{option.opts[0]}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    debug = ["--debug"] if "--debug" in sys.argv else []  # of the whole program, not of this command
    return launch(["train", *arguments, *debug], count)


def rehearse(config: Config, processes: int = 1) -> None:
    """Print what each process of a run would load, and raise an error if that does not fit into memory."""
    from qframe.cache.lengths import fitted_size
    from qframe.cli.memory import show_choices
    from qframe.cli.training import prepare
    from qframe.progress.shown import terminal_progress
    from qframe.train.trainer import Trainer

    trainer = Trainer(config, progress=terminal_progress())
    prepare(trainer)
    show_choices(trainer.outlook.choices)
    forecast = trainer.outlook.forecast(fitted_size, processes=processes)
    click.echo("\n".join(forecast.table()))
    forecast.check()
