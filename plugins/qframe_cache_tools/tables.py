"""Formats what the commands `qframe cache` print: entries and bytes, differences, plans of a pruning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from qframe.progress import duration

if TYPE_CHECKING:
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


def pruning_lines(pruning: Pruning, *, done: bool) -> list[str]:
    """Describe a pruning, one line for each kind of entries. `done` says whether it was carried out."""

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


def explained_line(part: PartReport) -> str:
    """Describe in one line whether a part is stored, or how it differs from the nearest stored entry."""
    line = f"{part.part:<13} {'stored ' if part.stored else 'missing'}  {part.key[:16]}"
    if part.stored:
        return line
    return f"{line}  {'; '.join(part.differences) or 'nothing of its kind is stored'}"
