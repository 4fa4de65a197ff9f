"""Training in a terminal: what `qframe train` and other commands that train have in common."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qframe.files.run_folder import resume_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.config import Resolved
    from qframe.config.schema import Config
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


def next_steps(config: Config, folder: Path) -> list[tuple[str, str]]:
    """Return what a user may do after a run, as commands to paste: each with a word for what it does.

    Args:
        config: The configuration of the run.
        folder: The run's folder.
    """
    run = shlex.quote(str(folder))
    found = [("a page", f"qframe report {run}")]
    if config.train.mode == "lora":
        found.append(("try it", _sample_command(config, folder)))
    more = config.train.max_steps * 2
    longer = f"train.epochs={config.train.epochs * 2}" if config.train.epochs else f"train.max_steps={more}"
    return [*found, ("longer", f"{resume_command(folder)} --set {longer}")]


def _sample_command(config: Config, folder: Path) -> str:
    """The command that samples a record of the run with its LoRA. Names of pictures that it lacks are in capitals."""
    from qframe.compose import recipe_class
    from qframe.config import chosen_family
    from qframe.plugins.registry import load_registry
    from qframe.sample.jobs.asked import own_fields

    chosen = chosen_family(None, family=config.family, overrides=(), registry=load_registry())
    row = _first_record(folder)
    words = ["qframe", "sample", "--family", config.family]
    if config.model is not None and config.model != chosen.family.model:
        words += ["--model", str(config.model)]
    words += ["--lora", str(folder)]
    fields = [field for field in own_fields(recipe_class(chosen).request_type) if field.kind == "picture"]
    given = list(row.get("references", ()))
    if any(field.grey for field in fields):  # a mask goes with a picture, and no record has a picture of its own for it
        given = given or [row["target"]] if row else []
    for field in fields:
        flag, files = f"--{field.key.replace('_', '-')}", [f"{field.key.upper()}.png"]
        if not field.grey and given:
            files = [str(folder / "samples" / name) for name in (given if field.nested else given[:1])]
        if field.grey or given or not row:
            words += [word for file in files for word in (flag, file)]
    return shlex.join([*words, "--prompt", str(row.get("prompt", "...")), "--output", "out.png"])


def _first_record(folder: Path) -> Mapping[str, Any]:
    """The first record that the run sampled, as it stored it; empty if it sampled none."""
    try:
        rows = json.loads((folder / "samples" / "records.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    return dict(rows[0]) if rows else {}
