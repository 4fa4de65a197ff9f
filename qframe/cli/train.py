"""`qframe train`: the trainer, with progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, SET, announce, examples, options, resolve

if TYPE_CHECKING:
    from qframe.schema import Config
    from qframe.train.trainer import FitResult


@click.command(
    epilog=examples(
        "qframe train --family qwen-edit",
        "qframe train --family qwen-edit --model DIR --data pictures/ --output runs/mine --set lora.rank=32",
        "qframe train --family qwen-edit --output runs/mine --resume",
    )
)
@options(FAMILY, MODEL, DATA)
@click.option("--output", metavar="DIR", help="The run's folder [default: runs/FAMILY, numbered].")
@options(CONFIG, SET)
@click.option(
    "--resume",
    metavar="[latest|PATH]",
    is_flag=False,
    flag_value="latest",
    help="Go on from a checkpoint of the run: the newest whole one, or this one.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be loaded and whether it fits; load and train nothing.")
def train(
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    resume: str | None,
    dry_run: bool,
) -> None:
    """Train a LoRA, or with train.mode=full the whole denoiser.

    Encodes the data set once, samples, trains, samples again, and writes weights, checkpoints and a sheet of
    pictures into the run's folder. `qframe config show` lists everything that --set can change.
    """
    config = resolve(family, config_file, overrides, model=model, data=data, output=output).config
    announce(config, data=True)
    if dry_run:
        rehearse(config)
        return
    result = fit(config, resume)
    click.echo(f"weights   {result.weights}")
    if result.sheet:
        click.echo(f"pictures  {result.sheet}")


def fit(config: Config, resume: str | None = None) -> FitResult:
    """Run the trainer of a configuration in this terminal."""
    from qframe.cli.memory import foretold
    from qframe.cli.progress import terminal_progress
    from qframe.preflight import forecast_training
    from qframe.train.trainer import Trainer

    if config.offload != "none":
        click.echo("note: offload is for sampling; training loads only what a stage needs", err=True)
    trainer = Trainer(config, progress=terminal_progress())
    with foretold(forecast_training(trainer.composition, trainer.records)):
        return trainer.fit(resume)


def rehearse(config: Config) -> None:
    """Say what a run would load, and whether it fits."""
    from qframe.encoding import fitted_size
    from qframe.preflight import forecast_training
    from qframe.train.trainer import Trainer

    trainer = Trainer(config)
    forecast = forecast_training(trainer.composition, trainer.records, fitted_size)
    click.echo("\n".join(forecast.table()))
    forecast.check()
