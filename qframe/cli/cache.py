"""`qframe cache`: encode a data set ahead of training, and look after what is stored."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qframe.cli.shared import CONFIG, DATA, FAMILY, MODEL, SET, announce, examples, options, resolve
from qframe.errors import CacheError, ConfigError, DataError
from qframe.progress import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.cache import Cache
    from qframe.cache.explain import PartReport
    from qframe.cache.plan import CachePlan
    from qframe.cache.prune import Pruning
    from qframe.cache.survey import Amount, Survey
    from qframe.config.schema import Config

_OUTPUT = click.option("--output", metavar="DIR", help="The run's folder; the cache is where a run of it would look.")
_DAY = 24 * 3600.0


@click.group()
def cache() -> None:
    """Encoded examples: build them ahead of training, check them, see what they are, clear them out."""


@cache.command(
    epilog=examples(
        "qframe cache build --family qwen-edit --data pictures",
        "qframe cache build --config run.toml --shard 2/4",
        "torchrun --nproc-per-node 4 -m qframe cache build --config run.toml",
    )
)
@options(FAMILY, MODEL, DATA, _OUTPUT, CONFIG, SET)
@click.option(
    "--shard",
    metavar="I/N",
    help="Encode the I-th of N shares, each in a process of its own [default: RANK of WORLD_SIZE under torchrun].",
)
def build(
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    shard: str | None,
) -> None:
    """Encode what is not in the cache yet. `qframe train` does the same before its first step."""
    config = resolve(family, config_file, overrides, model=model, data=data, output=output).config
    if not config.cache.enabled:
        raise ConfigError("cache.enabled is false, so there is nothing to build", "Set it to true.")

    from qframe.cache import CachedExamples, Share
    from qframe.cli.progress import terminal_progress
    from qframe.train.trainer import Trainer

    share = Share.of_environment() if shard is None else Share.parse(shard)
    announce(config, data=True)
    trainer = Trainer(config, progress=terminal_progress())
    made = trainer.cache(share=share)
    held_out = trainer.cache(share=share, records=trainer.measured) if trainer.measured else ()
    parts = [part for part in (made, held_out) if isinstance(part, CachedExamples) and share.count > 1]
    if missing := sum(part.missing() for part in parts):
        click.echo(f"share {share} is ready; {missing} entries of other shares are still missing")
    else:
        apart = f", and {len(held_out)} held out" if held_out else ""
        click.echo(f"{len(made)} examples are ready{apart}")


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/cache"))
@click.option("--repair", is_flag=True, help="Take damaged entries out; the next build encodes them anew.")
def verify(folder: Path, repair: bool) -> None:
    """Read every entry of the cache in FOLDER [default: runs/cache] and compare its checksum.

    Damaged entries are named, and the exit code is 3 unless they are repaired.
    """
    from qframe.cli.progress import terminal_progress

    with _existing(folder) as opened:
        entries = opened.stats().entries
        damages = opened.verify(terminal_progress())
        for damage in damages:
            click.echo(str(damage))
        if damages and repair:
            opened.repair(damages)
            click.echo(f"{folder}: {len(damages)} damaged of {entries} entries were taken out")
    if damages and not repair:
        raise CacheError(f"{folder}: {len(damages)} of {entries} entries are damaged", "--repair takes them out.")
    if not damages:
        click.echo(f"{folder}: all {entries} entries are whole")


@cache.command(
    epilog=examples(
        "qframe cache explain 0007 --family qwen-edit --data pictures",
        "qframe cache explain 0007 0008 --config runs/mine/config.toml",
    )
)
@click.argument("samples", metavar="SAMPLE...", nargs=-1, required=True)
@options(FAMILY, MODEL, DATA, _OUTPUT, CONFIG, SET)
def explain(
    samples: tuple[str, ...],
    family: str | None,
    model: str | None,
    data: str | None,
    output: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Say which parts of a sample (by its record's id) are stored, and why others are not.

    A part that is missing is compared with the nearest entry that is stored: what differs is what makes it
    be encoded again.
    """
    config = resolve(family, config_file, overrides, model=model, data=data, output=output).config
    announce(config, data=True)

    from qframe.cache.explain import explain as explained
    from qframe.cli.progress import terminal_progress

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
                click.echo(f"  {_explained(part)}")
        plan.digests.save()


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@options(FAMILY, MODEL, DATA, _OUTPUT, CONFIG, SET)
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
    """Count what the cache in FOLDER [default: runs/cache] holds, from the headers of its shards.

    With a configuration (--family, --config) the cache is its own, and what its data set needs of it is counted too.
    """
    configured = family is not None or config_file is not None
    if not configured and (model or data or output or overrides):
        raise ConfigError("these options belong to a configuration", "Give --family or --config as well.")
    config = (
        resolve(family, config_file, overrides, model=model, data=data, output=output).config if configured else None
    )
    where = folder or (Path("runs/cache") if config is None else _folder(config))

    from qframe.cache.survey import survey
    from qframe.cli.progress import terminal_progress
    from qframe.progress import SILENT

    progress = SILENT if as_json else terminal_progress()
    with _existing(where) as opened:
        found = survey(opened, progress)
        wanted = None if config is None else _wanted(config, opened, read_aloud=not as_json)
    if as_json:
        click.echo(json.dumps(_as_json(where, found, wanted), indent=1))
        return
    for label, value in _table(where, found, wanted):
        click.echo(f"{label:<12}  {value}")


@cache.command(
    epilog=examples(
        "qframe cache prune --config runs/a/config.toml --config runs/b/config.toml",
        "qframe cache prune --folder runs/cache --older-than 90 --yes",
    )
)
@options(FAMILY, MODEL, DATA, _OUTPUT)
@click.option(
    "--config",
    "config_files",
    metavar="FILE",
    multiple=True,
    help="A configuration to keep the entries of. Repeatable.",
)
@options(SET)
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="The cache [default: the configurations']. "
)
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only entries that were written longer ago."
)
@click.option("--yes", is_flag=True, help="Do it; without it, say what would go.")
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
    """Take out of the cache what no given configuration needs, and say first what would go.

    With --older-than only what was written so long ago; without a configuration, all of that. Copies of entries that
    lie in the cache twice go too. Nothing goes while another process uses the cache.
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

    from qframe.cache.prune import plan_pruning
    from qframe.cache.prune import prune as do
    from qframe.cli.progress import terminal_progress

    where = next(iter(folders), Path("runs/cache"))
    progress = terminal_progress()
    with _existing(where) as opened:
        keep: set[str] | None = set() if configs else None
        for config in configs:
            plan = _plan(config, opened, unconditional=True)
            plan.read(progress)
            assert keep is not None  # there are configurations
            keep.update(plan.every_key())
        before = None if older_than is None else time.time() - older_than * _DAY
        pruning = plan_pruning(opened, keep=keep, written_before=before, progress=progress)
        if yes:
            do(opened, pruning, progress)
    for line in _pruned(pruning, done=yes):
        click.echo(line)


def _existing(folder: Path) -> Cache:
    from qframe.cache import Cache

    if not (folder / "shards").is_dir():
        raise CacheError(f"{folder}: there is no cache", "Give the folder that cache.dir names, or RUNS/cache.")
    return Cache(folder)


def _folder(config: Config) -> Path:
    from qframe.cache.configured import cache_folder

    return cache_folder(config)


def _plan(config: Config, opened: Cache, *, unconditional: bool) -> CachePlan:
    """The entries that a configuration needs, not read yet."""
    from qframe.cache.configured import configured_plan
    from qframe.cli.progress import terminal_progress
    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe.plugins.registry import load_registry
    from qframe.train.records import measured_records, split_records

    registry = load_registry()
    composition = compose(config, registry)
    records, held_out = split_records(open_source(config, registry), config)
    if measured := measured_records(held_out, config):
        records = [*records, *measured]
    return configured_plan(composition, records, opened, unconditional=unconditional, progress=terminal_progress())


def _explained(part: PartReport) -> str:
    line = f"{part.part:<13} {'stored ' if part.stored else 'missing'}  {part.key[:16]}"
    if part.stored:
        return line
    return f"{line}  {'; '.join(part.differences) or 'nothing of its kind is stored'}"


def _wanted(config: Config, opened: Cache, *, read_aloud: bool) -> dict[str, int]:
    """How many parts a configuration's records have, how many of them differ, how many of these are missing."""
    from qframe.cache.examples import entries_of
    from qframe.cli.progress import terminal_progress
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


def _as_json(where: Path, found: Survey, wanted: dict[str, int] | None) -> dict[str, object]:
    import attrs

    values = {"folder": str(where), "entries": found.entries, **attrs.asdict(found)}
    return values if wanted is None else {**values, "wanted": wanted}


def _age(seconds: float) -> str:
    return f"{seconds / _DAY:.1f} days" if seconds >= _DAY else duration(max(seconds, 0.0))


def _table(where: Path, found: Survey, wanted: dict[str, int] | None) -> list[tuple[str, str]]:
    now = time.time()
    rows = [("cache", str(where)), ("entries", _amount(found.entries, sum(k.bytes for k in found.kinds.values())))]
    rows += [(f"  {kind}", _amount(amount.entries, amount.bytes)) for kind, amount in found.kinds.items()]
    rows.append(("shards", _amount(found.shards, found.bytes)))
    if found.oldest is not None and found.newest is not None:
        rows.append(("written", f"{_age(now - found.oldest)} to {_age(now - found.newest)} ago"))
    rows.append(
        ("copies", f"{_amount(found.orphaned.entries, found.orphaned.bytes)} (`qframe cache prune` takes them out)")
    )
    rows.append(("damaged", f"{_amount(found.damaged_shards, found.damaged_bytes)} with a damaged header"))
    if wanted is not None:
        rows.append(("data set", f"{wanted['examples']} examples of {wanted['parts']} parts"))
        rows.append(("  shared", f"{wanted['entries']} entries, {wanted['shared']} parts share one with another"))
        rows.append(("  missing", str(wanted["missing"])))
    return rows


def _pruned(pruning: Pruning, *, done: bool) -> list[str]:
    def line(what: str, amount: Amount) -> str:
        return f"{what:<12}  {_amount(amount.entries, amount.bytes)}"

    rows = [line(kind, amount) for kind, amount in pruning.kinds.items()]
    rows.append(line("copies", pruning.orphaned))
    rows.append(line("stay", pruning.kept))
    shards = f"{len(pruning.shards)} shards"
    end = (
        f"{pruning.gone.entries} entries are gone"
        if done
        else f"{pruning.gone.entries} entries would go; --yes does it"
    )
    return [*rows, f"{shards}: {end}" if pruning.shards else "there is nothing to take out"]


def _amount(count: int, size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{count}, {value:.{0 if unit == 'bytes' else 1}f} {unit}"
        value /= 1000
    return f"{count}, {value:.1f} GB"
