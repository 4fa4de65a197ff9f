"""`qframe sample`: make pictures; the options come from the requests that the family takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from qframe.cli.placement_keys import placement_keys
from qframe.cli.request_options import RequestCommand, finite, seed
from qframe.cli.sample_grid import Column, columns_of, make_grid
from qframe.cli.shared import (
    CONFIG,
    DEVICE,
    DTYPE,
    FAMILY,
    MEMORY,
    MODEL,
    PROGRESS,
    SET,
    announce,
    examples,
    options,
    resolve,
    scaled_file,
    terminal_progress,
)
from qframe.errors import ConfigError, DataError, UntrustedError, bullet_list
from qframe.files.lora_file import find_loras

if TYPE_CHECKING:
    from qframe.sample.jobs.asked import Asked
    from qframe.sample.jobs.job import Desk, Job
    from qframe.sample.jobs.stored import Stored

SOURCES = ("--prompt", "--prompt-file", "--batch", "--from")


class SampleCommand(RequestCommand):
    """The command, which reports missing and contradicting options before it reads any file."""

    after = "picture"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = ctx.params
        several = [name for name in ("prompt", "prompt_file", "batch") if given[name]]
        if len(several) > 1:
            raise click.UsageError(f"{' and '.join(_flag(name) for name in several)}: give one of them.", ctx)
        if given["batch"] and given["picture"]:
            raise click.UsageError("--batch and --from: give one of them.", ctx)
        if not several and not given["picture"]:
            raise click.UsageError(f"Missing option '--prompt'. One of {', '.join(SOURCES)} says what to make.", ctx)
        if given["output"] is None and not given["picture"]:
            raise click.UsageError("Missing option '--output'.", ctx)
        if given["grid"] and given["picture"]:
            raise click.UsageError("--grid and --from: a picture names its own LoRAs.", ctx)
        if given["config_file"] and given["picture"]:
            raise click.UsageError("--config and --from: the picture brings a configuration; use --set.", ctx)
        return rest


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@click.command(
    cls=SampleCommand,
    epilog=examples(
        'qframe sample --family qwen-edit --image in.png --prompt "make the circle blue" --output out.png',
        'qframe sample --family qwen-inpaint --image in.png --mask mask.png --prompt "..." --output out.png',
        'qframe sample --family qwen-image --prompt "a large red circle at the left on a blue background" '
        "--size 96x64 --num-images 4 --output out.png",
        "qframe sample --family qwen-edit --lora runs/mine/lora.safetensors:0.8 --image in.png ...",
        "qframe sample --family qwen-edit --batch requests.jsonl --output results/",
        "qframe sample --family qwen-edit --lora runs/a@500 --lora runs/a@best --grid sheet.png --image in.png ...",
        "qframe sample --from out.png --seed 3 --output other.png",
    ),
)
@options(FAMILY, MODEL)
@click.option("--prompt", multiple=True, help="What to make. Repeat it for several pictures.")
@click.option("--prompt-file", metavar="FILE", help="A text file whose content is one prompt.")
@click.option(
    "--batch", metavar="FILE", help="Requests, one per line in JSON; pictures that exist already are skipped."
)
@click.option(
    "--from", "picture", metavar="FILE", help="Recreate this picture; other options change single values of it."
)
@click.option(
    "--negative-prompt", multiple=True, help="What guidance steers away from: one for all, or one per prompt."
)
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps [default: the family's].")
@click.option(
    "--guidance",
    type=click.FloatRange(min=0.0),
    callback=finite,
    help="Guidance scale; above 1 a step takes twice as long [default: off, or the family's with --negative-prompt].",
)
@click.option(
    "--size",
    metavar="WxH|as-input",
    help="Width and height in pixels, or exactly those of --image [default: the family's].",
)
@click.option("--seed", type=int, callback=seed, help="Picture i takes seed + i [default: 0].")
@click.option("--num-images", type=click.IntRange(1, 10_000), help="Pictures per prompt [default: 1].")
@click.option(
    "--lora",
    metavar="FILE[:SCALE]",
    multiple=True,
    help="A LoRA, or the folder of a run. Repeatable.",
)
@click.option(
    "--offload",
    type=click.Choice(["none", "model", "stream"]),
    help="Keep on the device only the network that computes, or only a few blocks of it [default: as --memory needs].",
)
@click.option(
    "--devices",
    metavar="NAMES",
    help="cuda:0,cuda:1 to spread the components over; or by name, encoder=cuda:1,denoiser=cuda:0.",
)
@click.option(
    "--output",
    metavar="FILE",
    help="PNG, JPEG or WebP; several pictures are numbered. A folder with --batch [default with --from: NAME-again].",
)
@click.option("--grid", metavar="FILE", help="Make every picture with each --lora alone, and a sheet of them all.")
@click.option("--overwrite", is_flag=True, help="Replace pictures that exist.")
@click.option("--no-metadata", is_flag=True, help="Do not store in the pictures how they were made.")
@click.option("--allow-outside", is_flag=True, help="Let --batch read pictures outside of the folder of its file.")
@options(DEVICE, DTYPE, MEMORY, CONFIG, SET, PROGRESS)
def sample(
    family: str | None,
    model: str | None,
    batch: str | None,
    picture: str | None,
    lora: tuple[str, ...],
    offload: str | None,
    devices: str | None,
    output: str | None,
    grid: str | None,
    overwrite: bool,
    no_metadata: bool,
    allow_outside: bool,
    memory: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    **request: Any,
) -> None:
    """Make pictures: from a prompt, a file of requests, or a picture that qframe made before.

    Each picture stores how it was made, so that --from can repeat it. With --family, --help shows that family's own
    options too (--image, --mask, ...).
    """
    from qframe.cli.sample_jobs import make
    from qframe.sample.jobs.stored import check_models, read_stored

    stored = None if picture is None else read_stored(Path(picture))
    columns = [] if grid is None else columns_of(lora, Path(grid), overwrite=overwrite)
    loras = {} if columns else find_loras(map(scaled_file, lora))
    prompts = _prompts(request.pop("prompt"), request.pop("prompt_file"), stored)
    given = {name: value for name, value in request.items() if value not in (None, ())}
    many = len(prompts) * given.get("num_images", 1)
    files = [] if batch else _files(output, picture, many, columns, overwrite=overwrite)
    config = resolve(
        family or (stored.family if stored else None),
        config_file,
        (*placement_keys(offload, devices), *overrides),
        model=model,
        memory=memory,
        below=stored.config_tables() if stored else None,
    ).config
    announce(config, data=False)
    if stored is not None and picture is not None:
        loras = _repeated(stored, picture, given, loras)

    from qframe.compose import compose
    from qframe.sample.jobs.job import Desk

    composition = compose(config)
    progress, metadata, repeated = terminal_progress(), not no_metadata, stored.request if stored else {}
    wanted = _Wanted(prompts, given, repeated, files, batch, Path(output or ""), overwrite, allow_outside)
    with wanted.alone():
        if grid is not None:
            make_grid(composition, columns, wanted.of, Path(grid), progress, metadata=metadata)
            return
        desk = Desk.of(composition, loras)
        if stored is not None and picture is not None and model is None:
            check_models(stored, desk.setting, picture)
        if todo := wanted.of(desk)[1]:
            make(composition, loras, todo, progress, metadata=metadata, continue_after_failure=batch is not None)


@attrs.frozen(eq=False)
class _Wanted:
    """The pictures that a command asks for, with --grid once for each LoRA.

    Attributes:
        prompts: The prompts, unless `batch` is given.
        given: The values of the options.
        repeated: The request of the picture that --from names; empty without it.
        files: The files of the pictures, those of one column after those of another, unless `batch` is given.
        batch: The file of requests, if there is one.
        folder: The folder of the results of a batch, in which each column of a grid has a folder.
        overwrite: Whether pictures that exist are replaced.
        allow_outside: Whether lines of a batch may name pictures outside of its folder.
    """

    prompts: Sequence[str]
    given: Mapping[str, Any]
    repeated: Mapping[str, Any]
    files: Sequence[Path]
    batch: str | None
    folder: Path
    overwrite: bool
    allow_outside: bool

    def alone(self) -> AbstractContextManager[None]:
        """A context in which no other program writes the results of a batch; see `_results`."""
        return nullcontext() if self.batch is None else _results(Path(self.batch), self.folder)

    def of(self, desk: Desk, column: Column | None = None) -> tuple[Sequence[Job], Sequence[Job]]:
        """Return the jobs of a column, or of all without a grid: all jobs, and those whose pictures are to be made."""
        place, name = (0, "") if column is None else (column.place, column.name)
        if self.batch is None:
            count = len(self.prompts) * int(self.given.get("num_images", 1))
            made = _jobs(desk, self.prompts, self.given, self.repeated, self.files[place * count :][:count])
            return made, made
        only = {"overwrite": self.overwrite, "allow_outside": self.allow_outside}
        return _listed(desk, Path(self.batch), self.folder / name, self.given, **only)


def _files(
    output: str | None, picture: str | None, count: int, columns: Sequence[Column], *, overwrite: bool
) -> list[Path]:
    """The files of the pictures, checked; with --from they are named after that picture unless --output names them.

    With --grid, the names of the files hold those of the columns, and the files of the columns follow one another.
    """
    from qframe.cli.sample_jobs import check_output
    from qframe.sample.jobs.job import numbered

    source = Path(picture or "")
    named = Path(output) if output else source.with_stem(f"{source.stem}-again")
    each = [named.with_stem(f"{named.stem}-{column.name}") for column in columns] or [named]
    files = [file for one in each for file in numbered(one, count)]
    check_output(files, overwrite=overwrite)
    return files


def _prompts(prompt: Sequence[str], file: str | None, stored: Stored | None) -> list[str]:
    if file is not None:
        from qframe.data.files import read_text

        try:
            text = read_text(Path(file)).rstrip("\r\n")
        except ValueError as error:
            raise DataError(
                f"--prompt-file {file}: {error}", "It must be a text file in UTF-8; its content is one prompt."
            ) from error
        if not text.strip():
            raise DataError(f"--prompt-file {file}: the file is empty", "Write the prompt into it.")
        return [text]
    if not prompt and stored is not None:
        return [str(stored.request.get("prompt", ""))]
    return list(prompt)


def _repeated(stored: Stored, picture: str, given: Mapping[str, Any], loras: Mapping[Path, float]) -> dict[Path, float]:
    """Print what a stored request names, check that those files are unchanged, and return the LoRAs to use."""
    import torch

    from qframe.sample.jobs.stored import check_files

    named = [
        path for key, paths in stored.request.items() if isinstance(paths, list) and key not in given for path in paths
    ]
    named += [] if loras else [lora.file for lora in stored.loras]
    shown = {key: stored.request.get(key) for key in ("seed", "steps")} | dict(stored.config)
    # Values come from the file of anybody: as JSON in ASCII they cannot play with the terminal.
    click.echo(f"As {picture} was made: {', '.join(f'{key} = {json.dumps(value)}' for key, value in shown.items())}.")
    if named:
        click.echo(f"It names these files, which are read: {', '.join(named)}.")
    version = stored.made_with.get("torch")
    if version != torch.__version__:
        click.echo(
            f"note: made with torch {version}, this is {torch.__version__}: pixels may differ a little", err=True
        )
    check_files(stored, [*given, *(["lora"] if loras else [])], picture)
    return dict(loras) or {Path(lora.file): lora.weight for lora in stored.loras}


def _jobs(
    desk: Desk, prompts: Sequence[str], given: Mapping[str, Any], stored: Mapping[str, Any], files: Sequence[Path]
) -> list[Job]:
    """The pictures that a command line asks for, rehearsed, in order; those of one prompt stand together."""
    import attrs

    from qframe.config.strict import InvalidError
    from qframe.sample.jobs.asked import asked_type, given_paths, read_asked
    from qframe.sample.jobs.job import Given
    from qframe.sample.per_prompt import broadcast

    kind = asked_type(desk.fields)
    negatives = broadcast(given.get("negative_prompt") or (None,), len(prompts), "--negative-prompt")
    many = int(given.get("num_images", 1))
    jobs: list[Job] = []
    for number, prompt in enumerate(prompts):
        values = {**stored, **given, "prompt": prompt}
        if given.get("negative_prompt"):
            values["negative_prompt"] = negatives[number]
        for field in desk.fields:
            if field.kind != "picture" or field.key not in values:
                continue
            if field.key not in given and not isinstance(values[field.key], list):
                raise UntrustedError(
                    f"the stored {field.key} is not a list, as qframe writes it", f"Give --{field.key}."
                )
            if field.several and not field.nested:
                values[field.key] = [broadcast(values[field.key], len(prompts), f"--{field.key}")[number]]
        try:
            asked: Asked = read_asked(values, kind)
        except InvalidError as error:
            raise ConfigError(f"the request has problems:\n{_problems(error)}", _HINT) from error
        pictures = {
            field.key: [Given.at(Path(path), f"--{field.key} {path}") for path in given_paths(asked, field)]
            for field in desk.fields
            if field.kind == "picture"
        }
        asked = attrs.evolve(asked, seed=asked.seed + number * many)
        jobs += desk.rehearsed(desk.jobs(asked, files[number * many : (number + 1) * many], "the request", pictures))
    return jobs


@contextmanager
def _results(batch: Path, folder: Path) -> Iterator[None]:
    """A context in which no other run writes to the results.

    DataError or ConfigError if batch or folder is unusable.
    """
    from qframe.cli.sample_jobs import check_folder
    from qframe.files.storage import clear_leftovers, lock_folder

    if not batch.is_file():
        raise DataError(f"--batch {batch}: there is no such file", "Give a file with a JSON object on every line.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: a file, expected the folder of the results", "Choose another name.")
    check_folder(folder)
    with lock_folder(folder):
        clear_leftovers(folder)
        yield


def _listed(
    desk: Desk, batch: Path, folder: Path, given: Mapping[str, Any], *, overwrite: bool, allow_outside: bool
) -> tuple[list[Job], list[Job]]:
    """All pictures of a batch, and those to be made. Values of the options are defaults for its lines."""
    from qframe.sample.jobs.batch import Batch

    defaults = dict(given)
    negatives = defaults.pop("negative_prompt", ())
    if len(negatives) > 1:
        raise ConfigError("--negative-prompt: several, and --batch takes one for all lines", "Write it into the lines.")
    if negatives:
        defaults["negative_prompt"] = negatives[0]
    listed = Batch(desk, batch, folder, defaults, overwrite=overwrite, allow_outside=allow_outside)
    todo, done = listed.jobs()
    if done:
        click.echo(f"{done} of {done + len(todo)} pictures are done already.")
    return listed.made, todo


_HINT = "`qframe sample --family NAME --help` shows what a family takes."


def _problems(error: Any) -> str:
    from qframe.sample.jobs.asked import describe

    return bullet_list(describe(problem) for problem in error.problems)
