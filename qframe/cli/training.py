"""Training in a terminal: what `qframe train` and other commands that train have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qframe.config import Resolved
    from qframe.train.distributed import Processes
    from qframe.train.results import FitResult


def fit(resolved: Resolved, resume: str | None = None, processes: Processes | None = None) -> FitResult:
    """Train as a configuration says, and show progress and the memory that is needed in this terminal.

    Args:
        resolved: The configuration, and where each of its values comes from.
        resume: "latest", or the path of a checkpoint of the run to continue from; None starts a new run.
        processes: The processes that train together; None means that this process trains alone.

    Raises:
        ResourceError: The run needs more memory than there is.
    """
    from qframe.cli.memory import with_forecast
    from qframe.cli.progress import terminal_progress
    from qframe.train.distributed import ALONE
    from qframe.train.trainer import Trainer

    if resolved.config.offload not in (None, "none"):
        click.echo("note: offload is for sampling; training loads only what a stage needs", err=True)
    trainer = Trainer(
        resolved.config, progress=terminal_progress(), processes=processes or ALONE, sources=resolved.sources
    )
    with with_forecast(trainer.outlook.forecast(), trainer.outlook.choices):
        return trainer.fit(resume)
