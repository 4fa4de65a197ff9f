"""Prepares what the HTML page says about one run, or about several runs side by side, and writes the page."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import jinja2

from qframe.files.storage import write_file
from qframe.plugins import distribution
from qframe_report.curves import FRAME, run_panels
from qframe_report.facts import Rate, rate_of, short, value_text, view_run
from qframe_report.pictures import Album, Thumbnail
from qframe_report.reading import Moment, RunFiles, SampleRow, read_run

LARGEST_PICTURES = 6 * 1024 * 1024  # bytes of all pictures of a page, after base64

_MOST_MOMENTS = 8
_MOST_STRIPS = 20
_OWN_SOURCES = ("default", "family ", "model ")


@attrs.frozen(kw_only=True)
class Figure:
    """A picture of a strip, with the words that belong to it.

    Attributes:
        thumbnail: The picture as the page embeds it.
        alt: A description for readers who cannot see the picture.
        label: The words below the picture.
        given: True for a picture of the validation record (reference or target), False for a sampled picture.
        run: Name of the run that sampled the picture; "" if the page shows only one run.
    """

    thumbnail: Thumbnail
    alt: str
    label: str
    given: bool = False
    run: str = ""


@attrs.frozen(kw_only=True)
class Strip:
    """The pictures of one validation record, which the page shows side by side.

    Attributes:
        prompt: The record's prompt.
        group: The record's group; "" if it has none.
        figures: The pictures of the record, then the samples in the order in which they were made.
    """

    prompt: str
    group: str
    figures: Sequence[Figure]


@attrs.frozen(kw_only=True)
class Setting:
    """A row of the page's table of configurations.

    Attributes:
        key: The dotted configuration key, for example "train.max_steps".
        cells: For each run the value, and where the value comes from.
        chosen: Whether a user set the key in at least one run; False means that all values are defaults.
        differs: Whether the runs have different values.
    """

    key: str
    cells: Sequence[tuple[str, str]]
    chosen: bool
    differs: bool


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the HTML page about a run, or about several runs side by side, and return `output`.

    The page stays small: curves are thinned, and all pictures together take at most `LARGEST_PICTURES` bytes.

    Args:
        folders: The folder of each run.
        output: The file to write.

    Raises:
        WeightsError: One of the folders holds no run.
    """
    write_file(output, page_of(folders).encode())
    return output


def _named(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Number the runs that have the same name."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else attrs.evolve(run, name=f"{run.name} ({place})")
        for place, run in enumerate(runs, 1)
    ]


def page_of(folders: Sequence[Path]) -> str:
    """Return the page about these runs, as `write_report` writes it."""
    return render(_named([read_run(folder) for folder in folders]))


def render(runs: Sequence[RunFiles]) -> str:
    """Return the page about these runs as HTML.

    All text that comes from a run is escaped, and the page forbids scripts, because a run's folder is not trusted.
    """
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
        version=distribution.version(),
    )


# -- pictures -------------------------------------------------------------------------------------------------


def chosen_moments(moments: Sequence[Moment], most: int) -> list[Moment]:
    """Choose at most `most` times at which the run sampled: the first, the last, and others evenly between them."""
    if len(moments) <= most:
        return list(moments)
    return [moments[round(place * (len(moments) - 1) / (most - 1))] for place in range(most)]


def _strips(runs: Sequence[RunFiles], album: Album) -> list[Strip]:
    """Return a strip for each record, at most `_MOST_STRIPS`; groups alternate, so that every group is shown early."""
    named: dict[str, list[tuple[RunFiles, SampleRow]]] = defaultdict(list)
    for run in runs:
        for row in run.rows:
            named[row.record].append((run, row))
    seen: dict[str, int] = defaultdict(int)
    turns: list[tuple[bool, int, str]] = []
    for name, members in named.items():
        described = _described(members)
        turns.append((described.target is None, seen[described.group], name))
        seen[described.group] += 1
    each = _MOST_MOMENTS if len(runs) == 1 else 2
    moments = {run.name: chosen_moments(run.moments, each) for run in runs}
    strips = []
    for _, _, name in sorted(turns, key=lambda turn: turn[:2])[:_MOST_STRIPS]:
        members = named[name]
        described = _described(members)
        figures = [*_inputs(described, album)]
        for run, row in members:
            figures += _samples(row, moments[run.name], "" if len(runs) == 1 else run.name, album)
        if figures:
            strips.append(Strip(prompt=short(described.prompt), group=described.group, figures=figures))
    return strips


def _described(members: Sequence[tuple[RunFiles, SampleRow]]) -> SampleRow:
    """Return the row of a run that stored the inputs of the record; if no run did, the row of the first run."""
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
    """Return the table of success: a column for each run and moment, and a row for each group.

    With several groups, a last row adds them up.
    """
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
    # Keys that only some of the runs have come last: runs of different versions of qframe differ in them.
    return sorted(settings, key=lambda setting: any(not value for value, _ in setting.cells))
