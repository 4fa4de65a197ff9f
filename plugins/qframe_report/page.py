"""The page: what was read of one run or of several, laid out for the template."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import jinja2

from qframe.files.storage import write_file
from qframe_report.curves import FRAME, run_panels
from qframe_report.facts import Rate, rate_of, short, value_text, view_run
from qframe_report.pictures import Album, Thumbnail
from qframe_report.reading import Moment, RunFiles, SampleRow, read_run

LARGEST_PICTURES = 6 * 1024 * 1024
"""Bytes that the pictures of a page may take, encoded as they stand in it."""

_MOST_MOMENTS = 8
_MOST_STRIPS = 20
_OWN_SOURCES = ("default", "family ", "model ")


@attrs.frozen(kw_only=True)
class Figure:
    """A picture of a strip. given: an input, not a sample. run: whose sample it is, "" where there is one run alone."""

    thumbnail: Thumbnail
    alt: str
    label: str
    given: bool = False
    run: str = ""


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


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of a run, or of several side by side. WeightsError if a folder holds no run.

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
        loader=jinja2.PackageLoader("qframe_report"),
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
        runs=[view_run(run) for run in runs],
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
            strips.append(Strip(prompt=short(told.prompt), group=told.group, figures=figures))
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
            alt = f"{label.capitalize()} picture of the record {short(row.prompt)!r}"
            yield Figure(thumbnail=thumbnail, alt=alt, label=label, given=True)


def _samples(row: SampleRow, moments: Sequence[Moment], run: str, album: Album) -> Iterator[Figure]:
    for moment in moments:
        if moment.key in row.samples and (thumbnail := album.add(row.samples[moment.key])) is not None:
            alt = f"Sample {'of ' + run + ' ' if run else ''}({moment.label}) of the record {short(row.prompt)!r}"
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
    rows = [(group, [rate_of([moment.results.get(group)]) for _, moment in columns]) for group in groups]
    if len(groups) > 1:
        rows.append(("all", [rate_of(list(moment.results.values())) for _, moment in columns]))
    return [("" if len(runs) == 1 else run.name, moment.label) for run, moment in columns], rows


def _settings(runs: Sequence[RunFiles]) -> list[Setting]:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    settings = []
    for key in keys:
        values = [value_text(run.config[key]) if key in run.config else "" for run in runs]
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
