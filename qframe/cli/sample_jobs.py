"""Make the pictures of jobs, one after another, and check beforehand that their files can be written."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs

from qframe.errors import ConfigError, QframeError, bullet_list

if TYPE_CHECKING:
    from PIL import Image

    from qframe.compose import Composition
    from qframe.preflight.forecast import Forecast
    from qframe.progress import Progress
    from qframe.sample.jobs.job import Job
    from qframe.sample.pipeline import Pipeline

logger = logging.getLogger(__name__)


def make(
    composition: Composition,
    loras: Mapping[Path, float],
    jobs: Sequence[Job],
    progress: Progress,
    *,
    metadata: bool,
    continue_after_failure: bool,
) -> int:
    """Load the model, make every picture, and return how many were made.

    Each picture is a run of its own. So it is written as soon as it is done, and is the same alone as among others.

    Args:
        composition: The components.
        loras: LoRA files to put on the denoiser, with the scale of each.
        jobs: The pictures to make.
        progress: Shows the pictures and their steps.
        metadata: Whether pictures store how they were made.
        continue_after_failure: Whether the other pictures are made after one has failed. Then one error that names all
            failures is raised at the end.
    """
    return make_columns(
        composition, [(loras, jobs)], progress, metadata=metadata, continue_after_failure=continue_after_failure
    )


def make_columns(
    composition: Composition,
    columns: Sequence[tuple[Mapping[Path, float], Sequence[Job]]],
    progress: Progress,
    *,
    metadata: bool,
    continue_after_failure: bool,
) -> int:
    """Load the model once, and make pictures with several sets of LoRAs, one set after another.

    Args:
        composition: The components.
        columns: For each set of LoRAs, with the scale of each file, the pictures to make with it.
        progress: As for `make`.
        metadata: As for `make`.
        continue_after_failure: As for `make`.
    """
    from qframe.adapters import check_files
    from qframe.cli.memory import with_forecast
    from qframe.preflight.outlook import sampling_outlook
    from qframe.sample.loading import assemble

    outlook = sampling_outlook(composition)
    alone = columns[0][0] if len(columns) == 1 else {}
    if len(columns) > 1:  # `assemble` checks the LoRAs that it is given itself
        check_files(composition, [file for loras, _ in columns for file in loras])
    with with_forecast(outlook.forecast, outlook.choices):
        pipe = assemble(outlook.composition, alone, progress)
    maker = _Maker(pipe, outlook.forecast, progress, metadata, continue_after_failure, loras=alone)
    jobs = [(loras, job) for loras, several in columns for job in several]
    if len(jobs) == 1:
        maker.run(*jobs[0])
    else:
        with progress.stage("pictures", len(jobs)) as stage:
            for loras, job in jobs:
                maker.run(loras, job)
                stage.advance(1, **({"failed": len(maker.failed)} if maker.failed else {}))
    if maker.failed:
        raise _failures(maker.failed, len(jobs))
    return len(jobs)


@attrs.define(eq=False)
class _Maker:
    """Makes the pictures of jobs with one loaded model.

    Attributes:
        pipe: The model.
        forecast: What it needs, for the message of a device that has not enough memory.
        progress: Shows the pictures and their steps.
        metadata: Whether pictures store how they were made.
        continue_after_failure: Whether a job that fails is noted in `failed`, and raises no error.
        loras: The LoRAs that are on the denoiser now, with their scales.
        failed: The jobs that failed, with their errors.
    """

    pipe: Pipeline
    forecast: Forecast
    progress: Progress
    metadata: bool
    continue_after_failure: bool
    loras: Mapping[Path, float]
    failed: list[tuple[Job, QframeError]] = attrs.field(factory=list)

    def run(self, loras: Mapping[Path, float], job: Job) -> None:
        """Make the picture of a job with these LoRAs, and write it."""
        from qframe.preflight import explained
        from qframe.sample.jobs.picture_files import write_picture
        from qframe.sample.loading import exchange_loras

        if loras != self.loras:
            exchange_loras(self.pipe, loras)
            self.loras = loras
        try:
            with explained(self.forecast):
                made = _picture(self.pipe, job, self.progress)
        # One request that meets a bug must not cost a night's work on all the others.
        except Exception as error:
            if not self.continue_after_failure:
                raise
            logger.debug("%s", job.origin, exc_info=True)
            told = error if isinstance(error, QframeError) else QframeError(f"{type(error).__name__}: {error}")
            self.failed.append((job, told))
            return
        write_picture(job.file, made, job.stored.text() if self.metadata else None)
        self.progress.note(f"wrote {job.file}")


def _picture(pipe: Pipeline, job: Job, progress: Progress) -> Image.Image:
    """Make the picture of a job, from what the rehearsal settled of it, if that was kept."""
    from qframe.sample.settling import settle

    settled = job.settled or settle(pipe.recipe, job.request, pipe.parts)
    made = pipe.run_settled([one.seeded(job.seed) for one in settled], progress=progress)
    return cast("list[Image.Image]", made)[0]


def _failures(failed: Sequence[tuple[Job, QframeError]], count: int) -> QframeError:
    """One error that names all failures, of the kind of the first."""
    kind = type(failed[0][1])
    lines = [f"{job.origin} ({job.file}): {error}" for job, error in failed]
    hint = "The others are done, and the same command makes these anew."
    return kind(f"{len(failed)} of {count} pictures could not be made:\n{bullet_list(lines)}", hint)


def check_output(files: Sequence[Path], *, overwrite: bool) -> None:
    """Check the files of pictures before hours of sampling.

    Raises:
        ConfigError: A file exists and is not to be overwritten, its format is unknown, or its folder cannot be written.
    """
    for file in files:
        check_name(file)
    existing = [str(file) for file in files if file.exists()]
    if existing and not overwrite:
        raise ConfigError(f"--output: {', '.join(existing[:5])} exists already", "Choose another name, or --overwrite.")
    check_folder(files[0].parent)


def check_name(file: Path) -> None:
    """Check that a file of this name can be a picture.

    Raises:
        ConfigError: Its format is unknown, or it is a folder.
    """
    from qframe.sample.jobs.picture_files import FORMATS

    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {file}: the name must end in one of {', '.join(FORMATS)}", "For example out.png.")
    if file.is_dir():
        raise ConfigError(f"--output {file}: this is a folder, expected a file name", "Name a file in it.")


def check_folder(folder: Path) -> None:
    """Check that a folder can be written to, or can be made.

    Raises:
        ConfigError: It cannot.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output {folder}: {there} is no folder that can be written to", "Choose another place.")
