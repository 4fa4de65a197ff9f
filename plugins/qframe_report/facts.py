"""Describes one run in words: collects its facts as rows of tables, and formats values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from qframe.progress import duration
from qframe_report.curves import number
from qframe_report.reading import RunFiles

_MOST_TEXT = 240


@attrs.frozen(kw_only=True)
class Rate:
    """The fraction of sampled pictures that were judged right, of those that were judged.

    Attributes:
        text: The rate as text, for example "50% (2 of 4)".
        fraction: The rate from 0 to 1, which decides the length of the bar on the page.
    """

    text: str
    fraction: float


@attrs.frozen(kw_only=True)
class RunView:
    """What the page says about a run in facts and tables.

    Attributes:
        name: The name of the run's folder.
        facts: Label and value of each fact at the top.
        data: Label and value of each fact about the data set.
        shapes: Sizes of a record's pictures, such as "512 × 512 with 256 × 256", and how many records have them.
        groups: The name of each group of records, and how many records the group has.
        machine: Label and value of each fact about the device and the versions of packages.
        history: For each start of the run: when it was, from which step, and which settings had changed before it.
        gaps: Sentences about what is missing or damaged in the run's folder.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    data: Sequence[tuple[str, str]]
    shapes: Sequence[tuple[str, int]]
    groups: Sequence[tuple[str, int]]
    machine: Sequence[tuple[str, str]]
    history: Sequence[tuple[str, str, str]]
    gaps: Sequence[str]


def value_text(value: Any) -> str:
    """Format a value of a configuration for a table; an empty or blank string is shown in quotes."""
    if isinstance(value, str):
        return short(value) if value.strip() else json.dumps(value)
    return short(json.dumps(value, default=str))


def short(text: str) -> str:
    """Return the text; one of more than 240 characters is cut there, and " ..." is added."""
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."


def rate_of(counts: Sequence[tuple[int, int] | None]) -> Rate | None:
    """Return the rate of success over several groups of samples; None if no sample was judged.

    Args:
        counts: For each group how many samples were right and how many were judged; None for a group without samples.
    """
    known = [count for count in counts if count is not None]
    right, judged = sum(count[0] for count in known), sum(count[1] for count in known)
    if not judged:
        return None
    return Rate(text=f"{right / judged:.0%} ({right} of {judged})", fraction=min(max(right / judged, 0.0), 1.0))


def view_run(run: RunFiles) -> RunView:
    """Collect the facts and tables that the page shows about one run."""
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
    """Return the facts at the top of the page: steps, family, base model, success, time."""
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
    judged = [rate_of(list(moment.results.values())) for moment in run.moments if moment.results]
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
    rows = [("Records", value_text(data.get("records")))]
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
    """Return the sizes of a record's pictures after resizing, the most frequent first, with counts of records.

    A size is written as "512 × 512 with 256 × 256": first that of the target, then those of the references.
    """
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
    """Return when a session started, the step that it started from, and what had changed since the last one."""
    step = session.get("resumed_from")
    changes = session.get("changes")
    return (
        str(session.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "from the beginning" if step is None else f"resumed from step {step}",
        "; ".join(str(line).removeprefix("changed since the checkpoint: ") for line in changes)
        if isinstance(changes, list)
        else "",
    )
