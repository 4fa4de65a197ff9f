"""`qframe cache`: encode a data set before training, and look after what is stored."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qframe.cli.shared import (
    CONFIG,
    DATA,
    DEVICE,
    DTYPE,
    FAMILY,
    MODEL,
    PROGRESS,
    SET,
    announce,
    examples,
    options,
    resolve,
    terminal_progress,
)
from qframe.errors import CacheError, ConfigError, DataError
from qframe_cache_tools.tables import (
    DAY,
    explained_line,
    pruning_lines,
    survey_json,
    survey_rows,
    weights_json,
    weights_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qframe.cache import Cache
    from qframe.cache.plan import CachePlan
    from qframe.config.schema import Config

_OUTPUT = click.option("--output", metavar="DIR", help="The run's folder; the cache is where a run of it would look.")


def _configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a configuration, and call it with the argument `config` that they mean."""

    @options(FAMILY, MODEL, DATA, _OUTPUT, DEVICE, DTYPE, CONFIG, SET, PROGRESS)
    @functools.wraps(command)
    def resolved(
        family: str | None,
        model: str | None,
        data: str | None,
        output: str | None,
        config_file: str | None,
        overrides: tuple[str, ...],
        **more: Any,
    ) -> None:
        config = resolve(family, config_file, overrides, model=model, data=data, output=output).config
        command(config=config, **more)

    return resolved


@click.group()
def cache() -> None:
    """Encoded examples: build them before training, check them, count them, and delete what is not needed."""


@cache.command(
    epilog=examples(
        "qframe cache build --family qwen-edit --data pictures",
        "qframe cache build --config run.toml --shard 2/4",
        "torchrun --nproc-per-node 4 -m qframe cache build --config run.toml",
    )
)
@_configured
@click.option(
    "--shard",
    metavar="I/N",
    help="Encode the I-th of N portions, each in a process of its own [default: RANK of WORLD_SIZE under torchrun].",
)
def build(config: Config, shard: str | None) -> None:
    """Encode everything of a data set that is not in the cache yet, as `qframe train` does before its first step."""
    if not config.cache.enabled:
        raise ConfigError("cache.enabled is false, so there is nothing to build", "Set it to true.")

    from qframe.cache import CachedExamples, Portion
    from qframe.train.examples import encoded_examples
    from qframe.train.trainer import Trainer

    portion = Portion.of_environment() if shard is None else Portion.parse(shard)
    announce(config, data=True)
    trainer = Trainer(config, progress=terminal_progress())
    made = trainer.cache(portion=portion)
    held_out = encoded_examples(trainer, trainer.measured, trainer.cache_dir, portion) if trainer.measured else ()
    parts = [part for part in (made, held_out) if isinstance(part, CachedExamples) and portion.count > 1]
    if missing := sum(part.missing() for part in parts):
        click.echo(f"portion {portion} is ready; {missing} entries of other portions are still missing")
    else:
        apart = f", and {len(held_out)} held out" if held_out else ""
        click.echo(f"{len(made)} examples are ready{apart}")


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/cache"))
@click.option("--repair", is_flag=True, help="Take damaged entries out; the next build encodes them again.")
@options(PROGRESS)
def verify(folder: Path, repair: bool) -> None:
    """Read every entry of the cache in FOLDER [default: runs/cache] and compare its checksum.

    Quantised weights that lie there are read, too. What is damaged is named, and the exit code is 3 unless it is
    repaired.
    """
    from qframe_cache_tools.quantised import damaged_weights, remove_weights

    with _existing(folder) as opened:
        entries = opened.stats().entries
        damages = opened.verify(terminal_progress())
        for damage in damages:
            click.echo(str(damage))
        if damages and repair:
            opened.repair(damages)
            click.echo(f"{folder}: {len(damages)} damaged of {entries} entries were taken out")
    broken = damaged_weights(folder)
    for _, problems in broken:
        for line in problems:
            click.echo(line)
    if broken and repair:
        busy = remove_weights([one for one, _ in broken])
        click.echo(f"{folder}: {len(broken) - len(busy)} damaged folders of quantised weights were taken out")
    if (damages or broken) and not repair:
        found = f"{len(damages)} of {entries} entries" + (f" and {len(broken)} quantised networks" if broken else "")
        raise CacheError(f"{folder}: {found} are damaged", "--repair takes them out.")
    if not damages:
        click.echo(f"{folder}: all {entries} entries are whole")


@cache.command(
    epilog=examples(
        "qframe cache explain 0007 --family qwen-edit --data pictures",
        "qframe cache explain 0007 0008 --config runs/mine/config.toml",
    )
)
@click.argument("samples", metavar="SAMPLE...", nargs=-1, required=True)
@_configured
def explain(config: Config, samples: tuple[str, ...]) -> None:
    """Say which parts of an example (SAMPLE is its record's id) are stored, and why others are not.

    A missing part is compared with the nearest entry that is stored. The differences are the reason why the part would
    be encoded again.
    """
    announce(config, data=True)

    from qframe_cache_tools.explain import explain as explained

    with _existing(_folder(config)) as opened:
        plan = _plan(config, opened, unconditional=config.train.caption_dropout > 0)
        places = {record.id: index for index, record in enumerate(plan.inputs.records) if record.id in samples}
        if unknown := [sample for sample in samples if sample not in places]:
            known = ", ".join(record.id for record in plan.inputs.records[:3])
            raise DataError(f"no record is called {', '.join(unknown)}", f"Ids of this data set are like {known}.")
        inputs = [plan.inputs[places[sample]] for sample in samples]
        for sample, parts in zip(samples, explained(opened, inputs, plan.maker, terminal_progress()), strict=True):
            click.echo(sample)
            for part in parts:
                click.echo(f"  {explained_line(part)}")
        plan.digests.save()


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@options(FAMILY, MODEL, DATA, _OUTPUT, DEVICE, DTYPE, CONFIG, SET, PROGRESS)
@click.option("--json", "as_json", is_flag=True, help="Write the figures as one JSON object.")
def stats(
    folder: Path | None,
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count what the cache in FOLDER [default: runs/cache] holds, and list the quantised weights that lie there.

    Entries are counted from the headers of the cache's shards. With a configuration (--family or --config) the cache is
    the one that the configuration uses, and the entries that its data set needs are counted too.
    """
    configured = family is not None or config_file is not None
    if not configured and (model or data or output or overrides):
        raise ConfigError("these options belong to a configuration", "Give --family or --config as well.")
    config = (
        resolve(family, config_file, overrides, model=model, data=data, output=output).config if configured else None
    )
    where = folder or (Path("runs/cache") if config is None else _folder(config))

    from qframe_cache_tools.quantised import stored_weights
    from qframe_cache_tools.survey import survey

    progress = terminal_progress(as_json=as_json)
    with _existing(where) as opened:
        found, weights = survey(opened, progress), stored_weights(where)
        wanted = None if config is None else _wanted(config, opened, read_aloud=not as_json)
    if as_json:
        click.echo(json.dumps({**survey_json(where, found, wanted), "quantised": weights_json(weights)}, indent=1))
        return
    for label, value in (*survey_rows(where, found, wanted), *weights_rows(weights)):
        click.echo(f"{label:<12}  {value}")


@cache.command(
    epilog=examples(
        "qframe cache prune --config runs/a/config.toml --config runs/b/config.toml",
        "qframe cache prune --folder runs/cache --older-than 90 --yes",
    )
)
@options(FAMILY, MODEL, DATA, _OUTPUT, DEVICE, DTYPE)
@click.option(
    "--config",
    "config_files",
    metavar="FILE",
    multiple=True,
    help="A configuration to keep the entries of. Repeatable.",
)
@options(SET, PROGRESS)
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="The cache [default: the configurations']. "
)
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only entries that were written longer ago."
)
@click.option("--yes", is_flag=True, help="Take the entries out; without this flag, only say what would go.")
def prune(
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_files: tuple[str, ...],
    overrides: tuple[str, ...],
    folder: Path | None,
    older_than: float | None,
    yes: bool,
) -> None:
    """Take the entries that no given configuration needs out of the cache; without --yes, only say what would go.

    With --older-than, only entries that were written longer ago go; without a configuration, all of these go. Second
    copies of entries go too, and quantised weights by the same rules. While another process uses the cache, nothing is
    changed.
    """
    files: Sequence[str | None] = config_files or ((None,) if family is not None else ())
    configs = [resolve(family, f, overrides, model=model, data=data, output=output).config for f in files]
    folders = {_folder(config) for config in configs} if folder is None else {folder}
    if not configs and older_than is None:
        raise ConfigError(
            "nothing says what is to stay", "Give --config (or --family) of what to keep, or --older-than DAYS."
        )
    if len(folders) > 1:
        raise ConfigError(
            f"these configurations use several caches: {', '.join(map(str, sorted(folders)))}", "Give --folder."
        )

    from qframe_cache_tools.prune import plan_pruning
    from qframe_cache_tools.prune import prune as do
    from qframe_cache_tools.quantised import needed_weights, remove_weights, unwanted_weights

    where = next(iter(folders), Path("runs/cache"))
    progress = terminal_progress()
    with _existing(where) as opened:
        keep: set[str] | None = set() if configs else None
        used: set[str] | None = set() if configs else None
        for config in configs:
            plan = _plan(config, opened, unconditional=True)
            plan.read(progress)
            assert keep is not None  # there are configurations
            assert used is not None
            keep.update(plan.every_key())
            used.update(needed_weights(config, opened, progress))
        before = None if older_than is None else time.time() - older_than * DAY
        pruning = plan_pruning(opened, keep=keep, written_before=before, progress=progress)
        weights = unwanted_weights(where, keep=used, written_before=before)
        if yes:
            do(opened, pruning, progress)
    busy = remove_weights(weights) if yes else []
    for line in pruning_lines(pruning, weights, busy, done=yes):
        click.echo(line)


def _existing(folder: Path) -> Cache:
    from qframe.cache import Cache
    from qframe.config.folders import quantised_inside

    if not (folder / "shards").is_dir() and not quantised_inside(folder).is_dir():
        raise CacheError(f"{folder}: there is no cache", "Give the folder that cache.dir names, or RUNS/cache.")
    return Cache(folder)


def _folder(config: Config) -> Path:
    from qframe.config.folders import cache_folder

    return cache_folder(config)


def _plan(config: Config, opened: Cache, *, unconditional: bool) -> CachePlan:
    """Return the plan of the entries that a configuration needs; its records are not read yet.

    Args:
        config: The configuration.
        opened: The cache, which keeps the digests of files between runs.
        unconditional: Whether examples have the empty prompt too, which only caption dropout needs.
    """
    from qframe.cache import DeclaredInputs, PictureDigests
    from qframe.cache.configured import made_by
    from qframe.cache.plan import CachePlan
    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe.plugins.registry import load_registry
    from qframe.train.records import measured_records, split_records

    registry = load_registry()
    composition = compose(config, registry)
    records, held_out = split_records(open_source(config, registry), config)
    if measured := measured_records(held_out, config):
        records = [*records, *measured]
    makers = made_by(composition, opened, terminal_progress())
    inputs = DeclaredInputs(records, composition.recipe, unconditional=unconditional)
    return CachePlan(inputs, makers, PictureDigests(opened))


def _wanted(config: Config, opened: Cache, *, read_aloud: bool) -> dict[str, int]:
    """Count the parts of a configuration's records, the entries that they need, and those that are missing."""
    from qframe.cache.examples import entries_of
    from qframe.progress import SILENT

    plan = _plan(config, opened, unconditional=config.train.caption_dropout > 0)
    plan.read(terminal_progress() if read_aloud else SILENT)
    keys = plan.every_key()
    parts = sum(len(entries_of(one)) for one in plan.keys)
    return {
        "examples": len(plan.ids),
        "parts": parts,
        "entries": len(keys),
        "shared": parts - len(keys),
        "missing": len(opened.missing(keys)),
    }
