"""The page: what was read of one run or of several, laid out for the template."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import jinja2

from qframe.progress import duration
from qframe.report.curves import FRAME, number, run_panels
from qframe.report.pictures import Album, Thumbnail
from qframe.report.reading import Moment, RunFiles, SampleRow, read_run
from qframe.storage import write_file

LARGEST_PICTURES = 6 * 1024 * 1024
"""Bytes that the pictures of a page may take, encoded as they stand in it."""

_MOST_MOMENTS = 8
_MOST_STRIPS = 20
_MOST_TEXT = 240
_OWN_SOURCES = ("default", "family ", "model ")


@attrs.frozen(kw_only=True)
class Figure:
    """A picture of a strip. run: whose it is, "" where there is one run alone or it is an input."""

    thumbnail: Thumbnail
    alt: str
    label: str
    run: str


@attrs.frozen(kw_only=True)
class Strip:
    """A validation record: its inputs, then its samples in the order of time."""

    prompt: str
    group: str
    figures: Sequence[Figure]


@attrs.frozen(kw_only=True)
class Setting:
    """A key of the configuration. cells: value and source, per run. chosen: somebody set it; differs: between runs."""

    key: str
    cells: Sequence[tuple[str, str]]
    chosen: bool
    differs: bool


@attrs.frozen(kw_only=True)
class Rate:
    """Verdicts on one group at one moment: in words, and as a fraction for the bar."""

    text: str
    fraction: float


@attrs.frozen(kw_only=True)
class RunView:
    """A run as the page shows it: labelled facts, tables of two columns, remarks."""

    name: str
    facts: Sequence[tuple[str, str]]
    data: Sequence[tuple[str, str]]
    shapes: Sequence[tuple[str, int]]
    groups: Sequence[tuple[str, int]]
    machine: Sequence[tuple[str, str]]
    history: Sequence[tuple[str, str, str]]
    gaps: Sequence[str]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of a run, or of several side by side. CheckpointError if a folder holds no run.

    The page is bounded: its curves are thinned, pictures are small, and take `LARGEST_PICTURES` bytes at most.
    """
    runs = _named([read_run(folder) for folder in folders])
    write_file(output, render(runs).encode())
    return output


def _named(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Runs of one name get numbers."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else attrs.evolve(run, name=f"{run.name} ({place})")
        for place, run in enumerate(runs, 1)
    ]


def render(runs: Sequence[RunFiles]) -> str:
    """The page. Whatever comes from a run is text: it is escaped, and the page may run no script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qframe.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    album = Album(LARGEST_PICTURES)
    settings = _settings(runs)
    heads, rows = _verdicts(runs)
    return environment.get_template("page.html.jinja").render(
        title=" · ".join(run.name for run in runs),
        runs=[_view(run) for run in runs],
        strips=_strips(runs, album),
        album=album,
        frame=FRAME,
        panels=run_panels({run.name: run.series for run in runs}),
        verdict_heads=heads,
        verdict_rows=rows,
        settings=settings,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=importlib.metadata.version("qframe"),
    )


# -- pictures -------------------------------------------------------------------------------------------------


def chosen_moments(moments: Sequence[Moment], most: int) -> list[Moment]:
    """At most `most` of them: the first, the last, and what lies evenly between."""
    if len(moments) <= most:
        return list(moments)
    return [moments[round(place * (len(moments) - 1) / (most - 1))] for place in range(most)]


def _strips(runs: Sequence[RunFiles], album: Album) -> list[Strip]:
    """Of every record a strip, group by turns, so that the first ones show something of each."""
    named: dict[str, list[tuple[RunFiles, SampleRow]]] = defaultdict(list)
    for run in runs:
        for row in run.rows:
            named[row.name].append((run, row))
    seen: dict[str, int] = defaultdict(int)
    turns: list[tuple[bool, int, str]] = []
    for name, members in named.items():
        told = _told(members)
        turns.append((told.target is None, seen[told.group], name))
        seen[told.group] += 1
    each = _MOST_MOMENTS if len(runs) == 1 else 2
    moments = {run.name: chosen_moments(run.moments, each) for run in runs}
    strips = []
    for _, _, name in sorted(turns, key=lambda turn: turn[:2])[:_MOST_STRIPS]:
        members = named[name]
        told = _told(members)
        figures = [*_inputs(told, album)]
        for run, row in members:
            figures += _samples(row, moments[run.name], "" if len(runs) == 1 else run.name, album)
        if figures:
            strips.append(Strip(prompt=_short(told.prompt), group=told.group, figures=figures))
    return strips


def _told(members: Sequence[tuple[RunFiles, SampleRow]]) -> SampleRow:
    """The row of a run that kept what its samples are of; else any."""
    return next((row for _, row in members if row.target is not None), members[0][1])


def _inputs(row: SampleRow, album: Album) -> Iterator[Figure]:
    several = len(row.references) > 1
    given = [(f"reference {i}" if several else "reference", file) for i, file in enumerate(row.references, 1)]
    wanted = [("wanted", row.target)] if row.target else []
    for label, file in (*given, *wanted):
        thumbnail = album.add(file)
        if thumbnail is not None:
            alt = f"{label.capitalize()} picture of the record {_short(row.prompt)!r}"
            yield Figure(thumbnail=thumbnail, alt=alt, label=label, run="")


def _samples(row: SampleRow, moments: Sequence[Moment], run: str, album: Album) -> Iterator[Figure]:
    for moment in moments:
        if moment.key in row.samples and (thumbnail := album.add(row.samples[moment.key])) is not None:
            alt = f"Sample {'of ' + run + ' ' if run else ''}({moment.label}) of the record {_short(row.prompt)!r}"
            yield Figure(thumbnail=thumbnail, alt=alt, label=moment.label, run=run)


# -- tables ---------------------------------------------------------------------------------------------------


def _verdicts(runs: Sequence[RunFiles]) -> tuple[list[tuple[str, str]], list[tuple[str, list[Rate | None]]]]:
    """Columns (run, moment), and per group a verdict in each of them; the last row sums over the groups."""
    columns = [
        (run, moment)
        for run in runs
        for moment in chosen_moments([m for m in run.moments if m.results], _MOST_MOMENTS if len(runs) == 1 else 2)
    ]
    groups = list(dict.fromkeys(group for _, moment in columns for group in moment.results))
    rows = [(group, [_rate([moment.results.get(group)]) for _, moment in columns]) for group in groups]
    if len(groups) > 1:
        rows.append(("all", [_rate(list(moment.results.values())) for _, moment in columns]))
    return [("" if len(runs) == 1 else run.name, moment.label) for run, moment in columns], rows


def _rate(counts: Sequence[tuple[int, int] | None]) -> Rate | None:
    known = [count for count in counts if count is not None]
    right, judged = sum(count[0] for count in known), sum(count[1] for count in known)
    if not judged:
        return None
    return Rate(text=f"{right / judged:.0%} ({right} of {judged})", fraction=min(max(right / judged, 0.0), 1.0))


def _settings(runs: Sequence[RunFiles]) -> list[Setting]:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    settings = []
    for key in keys:
        values = [_value(run.config[key]) if key in run.config else "" for run in runs]
        sources = [str(run.sources.get(key, "")) for run in runs]
        settings.append(
            Setting(
                key=key,
                cells=list(zip(values, sources, strict=True)),
                chosen=any(source and not source.startswith(_OWN_SOURCES) for source in sources),
                differs=len(set(values)) > 1,
            )
        )
    # Keys that one side has not, as runs of other versions do, say least about what differs.
    return sorted(settings, key=lambda setting: any(not value for value, _ in setting.cells))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _short(value) if value.strip() else json.dumps(value)
    return _short(json.dumps(value, default=str))


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."


# -- one run --------------------------------------------------------------------------------------------------


def _view(run: RunFiles) -> RunView:
    data, machine = run.about("data"), run.about("machine")
    return RunView(
        name=run.name,
        facts=_facts(run),
        data=_data_rows(data) if isinstance(data, dict) else [],
        shapes=_shapes(data) if isinstance(data, dict) else [],
        groups=_groups(data) if isinstance(data, dict) else [],
        machine=_machine_rows(machine) if isinstance(machine, dict) else [],
        history=[_session(session) for session in run.sessions],
        gaps=run.gaps,
    )


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    series = run.series
    of = "" if run.wanted_steps is None else f" of {run.wanted_steps}"
    facts = [("Steps", f"{run.last_step}{of}, {'finished' if run.finished else 'not finished'}")]
    if family := run.config.get("family"):
        facts.append(("Family", str(family)))
    base = run.about("base_model") or run.config.get("model")
    if base:
        facts.append(("Base model", str(base)))
    if licence := run.about("weights_licence"):
        facts.append(("Licence of its weights", str(licence)))
    if mode := run.config.get("train.mode"):
        rank = run.config.get("lora.rank")
        facts.append(("Trained", f"LoRA, rank {rank}" if mode == "lora" else "the whole denoiser"))
    judged = [_rate(list(moment.results.values())) for moment in run.moments if moment.results]
    rates = [f"{rate.fraction:.0%}" for rate in judged if rate is not None]
    if rates:
        facts.append(("Success on validation records", " → ".join(dict.fromkeys([rates[0], rates[-1]]))))
    if "samples" in series:
        facts.append(("Examples seen", number(float(series["samples"].values.sum()))))
    if "seconds" in series:
        facts.append(("Time in steps", duration(float(series["seconds"].values.sum()))))
    skipped = series.get("skipped")
    if skipped is not None and (count := int(skipped.values.sum())):
        steps = ", ".join(str(step) for step in skipped.steps[skipped.values > 0][:5])
        facts.append(("Skipped steps", f"{count} (loss or gradient not finite): {steps}{', ...' if count > 5 else ''}"))
    return facts


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("Records", _value(data.get("records")))]
    lengths = data.get("text_tokens")
    if isinstance(lengths, list) and len(lengths) == 3 and all(isinstance(n, int | float) for n in lengths):
        least, mean, most = map(number, lengths)
        rows.append(("Text tokens", f"{least} to {most}, {mean} on average"))
    rows += [
        (label, str(data[key]))
        for key, label in (("weighted", "With a map of weights"), ("empty_captions", "With an empty caption"))
        if data.get(key)
    ]
    return rows


def _shapes(data: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Sizes after geometry, the most frequent first: "512 x 512, with 256 x 256"."""
    try:
        rows = [
            (" with ".join([_size(row["target"]), *map(_size, row["references"])]), int(row["count"]))
            for row in data.get("shapes", [])
        ]
        rest = int(data.get("kinds_of_shapes", len(rows))) - len(rows)
    except (TypeError, ValueError, KeyError):
        return []
    listed = sum(count for _, count in rows)
    return [*rows, *([(f"{rest} more", int(data["records"]) - listed)] if rest > 0 else [])]


def _size(sides: Sequence[int]) -> str:
    width, height = sides
    return f"{int(width)} × {int(height)}"


def _groups(data: Mapping[str, Any]) -> list[tuple[str, int]]:
    groups = data.get("groups")
    if not isinstance(groups, dict) or set(groups) <= {""}:
        return []
    return [(str(name) or "(none)", count) for name, count in groups.items() if isinstance(count, int)]


def _machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = [(label, machine.get(key)) for key, label in _MACHINE]
    versions = machine.get("versions")
    named = versions.items() if isinstance(versions, dict) else ()
    return [(str(label), str(value)) for label, value in (*known, *named) if value is not None]


_MACHINE = (("device", "Device"), ("threads", "CPU threads"), ("processes", "Processes"), ("system", "System"))


def _session(session: Mapping[str, Any]) -> tuple[str, str, str]:
    """When it began, from where, and what had changed."""
    step = session.get("resumed_from")
    changes = session.get("changes")
    return (
        str(session.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "from the beginning" if step is None else f"resumed from step {step}",
        "; ".join(str(line).removeprefix("changed since the checkpoint: ") for line in changes)
        if isinstance(changes, list)
        else "",
    )
