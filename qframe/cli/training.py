"""Training in a terminal: what `qframe train` and other commands that train have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.config import Resolved
    from qframe.train.distributed import Processes
    from qframe.train.results import FitResult
    from qframe.train.trainer import Trainer


def fit(
    resolved: Resolved,
    resume: str | None = None,
    processes: Processes | None = None,
    *,
    change: Sequence[str] = (),
) -> FitResult:
    """Train as a configuration says, and show progress and the memory that is needed in this terminal.

    Args:
        resolved: The configuration, and where each of its values comes from.
        resume: "latest", or the path of a checkpoint of the run to continue from; None starts a new run.
        processes: The processes that train together; None means that this process trains alone.
        change: Settings that may differ from those of the checkpoint.

    Raises:
        ResourceError: The run needs more memory than there is.
    """
    from qframe.cli.memory import with_forecast
    from qframe.progress.shown import terminal_progress
    from qframe.train.distributed import ALONE
    from qframe.train.trainer import Trainer

    if resolved.config.offload not in (None, "none"):
        click.echo("note: offload is for sampling; training loads only what a stage needs", err=True)
    trainer = Trainer(
        resolved.config, progress=terminal_progress(), processes=processes or ALONE, sources=resolved.sources
    )
    prepare(trainer)
    with with_forecast(trainer.outlook.forecast(), trainer.outlook.choices):
        return trainer.fit(resume, change=change)


def prepare(trainer: Trainer) -> None:
    """Say how the data set was understood, and check all records, before anything else is done.

    Raises:
        DataError: Records cannot be used; the message names all of them.
    """
    from qframe.train.examples import check_run_records

    for line in trainer.source.notes():
        trainer.progress.note(f"note: {line}")
    check_run_records(trainer)
