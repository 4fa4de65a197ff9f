"""`qframe sample --grid`: the same requests with several LoRAs, and a sheet that shows them side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from qframe.errors import ConfigError
from qframe.files.lora_file import find_loras, scaled_file

if TYPE_CHECKING:
    from qframe.compose import Composition
    from qframe.progress import Progress
    from qframe.sample.jobs.job import Desk, Job

_LONGEST_NAME = 80


@attrs.frozen(eq=False, kw_only=True)
class Column:
    """A column of the sheet: a LoRA, with which every picture is made once.

    Attributes:
        place: The number of the column, from 0.
        label: The LoRA as the user names it, which stands over the column.
        name: The same for names of files and folders; no two columns have the same.
        loras: The LoRA file and its scale.
    """

    place: int
    label: str
    name: str
    loras: dict[Path, float]


def columns_of(loras: Sequence[str], sheet: Path, *, overwrite: bool) -> list[Column]:
    """Return the columns that the values of --lora ask for.

    Args:
        loras: The values of --lora.
        sheet: The file of the sheet.
        overwrite: Whether that file may exist.

    Raises:
        ConfigError: No LoRA is given, or one is given twice, or the sheet cannot be written.
        WeightsError: A LoRA cannot be found.
    """
    from qframe.cli.sample_jobs import check_output

    if not loras:
        raise ConfigError("--grid: there is no --lora, and each is a column", "Give --lora RUN@500 --lora RUN@1000 ...")
    if twice := next((text for text in loras if loras.count(text) > 1), None):
        raise ConfigError(f"--grid: --lora {twice} is given twice", "Each is a column: give it once.")
    check_output([sheet], overwrite=overwrite)
    names = [re.sub(r"[^\w@.-]+", "-", text).strip("-.")[-_LONGEST_NAME:] for text in loras]
    return [
        Column(
            place=place,
            label=text,
            name=name if names.count(name) == 1 else f"{place + 1}-{name}",
            loras=find_loras([scaled_file(text)]),
        )
        for place, (text, name) in enumerate(zip(loras, names, strict=True))
    ]


def make_grid(
    composition: Composition,
    columns: Sequence[Column],
    jobs_of: Callable[[Desk, Column], tuple[Sequence[Job], Sequence[Job]]],
    sheet: Path,
    progress: Progress,
    *,
    metadata: bool,
) -> None:
    """Make every picture with every LoRA, loading the model once, and write the sheet.

    Args:
        composition: The components.
        columns: The LoRAs.
        jobs_of: Returns the jobs of a column: all of them, and those whose pictures are not there yet.
        sheet: The file of the sheet.
        progress: Shows the pictures and their steps.
        metadata: Whether pictures store how they were made.
    """
    from qframe.cli.sample_jobs import make_columns
    from qframe.sample.jobs.job import Desk

    made = [jobs_of(Desk.of(composition, column.loras), column) for column in columns]
    todo = [(column.loras, missing) for column, (_, missing) in zip(columns, made, strict=True) if missing]
    if todo:
        make_columns(composition, todo, progress, metadata=metadata, continue_after_failure=False)
    write_sheet(sheet, columns, [asked for asked, _ in made])
    click.echo(f"sheet     {sheet}")


def write_sheet(sheet: Path, columns: Sequence[Column], jobs: Sequence[Sequence[Job]]) -> None:
    """Write the sheet: a row for each job, a column for each LoRA; the pictures are read from their files.

    Args:
        sheet: The file.
        columns: The LoRAs.
        jobs: For each column its jobs, in the order of the rows.
    """
    from qframe.pictures.contact_sheet import Row, contact_sheet
    from qframe.pictures.picture import Picture
    from qframe.pictures.pixels import open_picture
    from qframe.sample.jobs.picture_files import write_picture

    rows = []
    for line in zip(*jobs, strict=True):
        pictures = [open_picture(Picture(str(job.file), job.file)) for job in line]
        rows.append(Row(str(line[0].stored.request["prompt"]), pictures, note=f"seed {line[0].seed}"))
    write_picture(sheet, contact_sheet(rows, [column.label for column in columns]), None)
