"""Formats what the commands `qframe cache` print: entries and bytes, differences, plans of a pruning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from qframe.progress import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.compose.stored_weights import StoredFolder
    from qframe_cache_tools.explain import PartReport
    from qframe_cache_tools.prune import Pruning
    from qframe_cache_tools.survey import Amount, Survey

DAY = 24 * 3600.0
"""Seconds of a day."""


def survey_json(where: Path, found: Survey, wanted: dict[str, int] | None) -> dict[str, object]:
    """Return the figures of a survey for JSON, with those of a configuration if `wanted` has any."""
    import attrs

    values = {"folder": str(where), "entries": found.entries, **attrs.asdict(found)}
    return values if wanted is None else {**values, "wanted": wanted}


def _age(seconds: float) -> str:
    return f"{seconds / DAY:.1f} days" if seconds >= DAY else duration(max(seconds, 0.0))


def survey_rows(where: Path, found: Survey, wanted: dict[str, int] | None) -> list[tuple[str, str]]:
    """Return the figures of a survey as labels and texts, with those of a configuration if `wanted` has any."""
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


def pruning_lines(
    pruning: Pruning, weights: Sequence[StoredFolder] = (), busy: Sequence[StoredFolder] = (), *, done: bool
) -> list[str]:
    """Describe a pruning, one line for each kind of entries and for each component's quantised weights.

    Args:
        pruning: The entries that go.
        weights: The quantised weights that are not wanted.
        busy: Those of them that stay because a process stores or checks them.
        done: Whether the pruning was carried out.
    """

    def fate(one: StoredFolder) -> str:
        return "in use, stays" if one in busy else "gone" if done else "would go; --yes does it"

    def line(what: str, amount: Amount) -> str:
        return f"{what:<12}  {_amount(amount.entries, amount.bytes)}"

    rows = [line(kind, amount) for kind, amount in pruning.kinds.items()]
    rows.append(line("copies", pruning.orphaned))
    rows.append(line("stay", pruning.kept))
    rows += [f"quantised     {_role(one)} {_weights(one)}: {fate(one)}" for one in weights]
    shards = f"{len(pruning.shards)} shards"
    end = (
        f"{pruning.gone.entries} entries are gone"
        if done
        else f"{pruning.gone.entries} entries would go; --yes does it"
    )
    if pruning.shards:
        rows.append(f"{shards}: {end}")
    return rows if pruning.shards or weights else [*rows, "there is nothing to take out"]


def _amount(count: int, size: int) -> str:
    return f"{count}, {_size(size)}"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.{0 if unit == 'bytes' else 1}f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def weights_json(weights: Sequence[StoredFolder]) -> list[dict[str, object]]:
    """Return what is known of stored quantised weights, for JSON."""
    return [
        {"folder": str(one.folder), "bytes": one.bytes, "written": one.written, "about": dict(one.about)}
        for one in weights
    ]


def weights_rows(weights: Sequence[StoredFolder]) -> list[tuple[str, str]]:
    """Return stored quantised weights as labels and texts: all together, and then each."""
    rows = [("quantised", _amount(len(weights), sum(one.bytes for one in weights)))]
    return rows + [(f"  {_role(one)}", f"{_weights(one)}, {_age(time.time() - one.written)} old") for one in weights]


def _role(one: StoredFolder) -> str:
    return str(one.about.get("role", "unknown"))


def _weights(one: StoredFolder) -> str:
    about = one.about
    return f"of {about.get('model', '?')} by {about.get('quantiser', '?')}, {_size(one.bytes)} ({one.folder.name[:12]})"


def explained_line(part: PartReport) -> str:
    """Describe in one line whether a part is stored, or how it differs from the nearest stored entry."""
    line = f"{part.part:<13} {'stored ' if part.stored else 'missing'}  {part.key[:16]}"
    if part.stored:
        return line
    return f"{line}  {'; '.join(part.differences) or 'nothing of its kind is stored'}"
