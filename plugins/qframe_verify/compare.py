"""Two traces stage by stage: differences, tolerances, verdicts, and the table. Stages are those of docs/features.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from qframe.interfaces import Conditioning, Trace


@attrs.frozen
class Tolerance:
    """|ours - theirs| <= atol + rtol |theirs|, element by element."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        if not self.rtol:
            return f"{self.atol:.0e}" if self.atol else "exact"
        return f"{self.rtol:.0e} rel + {self.atol:.0e}"


EXACT = Tolerance(0.0, 0.0)
FLOAT32 = Tolerance(1e-4, 1e-6)
_BFLOAT16 = 2.0**-7  # one unit in the last place of bfloat16, relative to the number
_REORDERED = 1e-5  # float32 sums of a network's width taken in another order, relative to the largest value


@attrs.frozen(kw_only=True)
class Row:
    """One stage. absolute: the largest difference. relative: that over the largest value of the oracle's.

    Both None where there is nothing to subtract: shapes or numbers of things differ (`note`), or are not finite.
    """

    feature: str
    stage: str
    absolute: float | None
    relative: float | None
    tolerance: Tolerance
    equal: bool
    note: str = ""


def compare(ours: Trace, theirs: Trace, *, tolerance: Tolerance | None = FLOAT32, amplified: float = 1.0) -> list[Row]:
    """A row for each stage. tolerance: None derives it from bfloat16's precision.

    In bfloat16 the networks may round otherwise for another layout in memory: one unit in the last place of the
    largest value; from the first step on `amplified` times as much (guidance of scale s makes up to 2 s - 1 of it), and
    as often as there are steps. Where float32 sums are taken in another order (`Trace.reordered`): 1e-5 of the largest
    value, as often. Of a picture's 8 bits one level more may differ.
    """

    def bound(values: Sequence[Tensor], steps: int = 0) -> Tolerance:
        largest = max((float(one.abs().max()) for one in values if one.numel()), default=0.0)
        if tolerance is None:
            return Tolerance(0.0, _BFLOAT16 * (amplified * steps if steps else 1) * largest)
        more = _REORDERED * max(steps, 1) * largest if theirs.reordered else 0.0
        return Tolerance(tolerance.rtol, max(tolerance.atol, more))

    def row(feature: str, stage: str, found: Sequence[Tensor], wanted: Sequence[Tensor], steps: int = 0) -> Row:
        return _row(feature, stage, found, wanted, bound(wanted, steps))

    count = len(theirs.steps)
    decoded = bound(theirs.decoded, count)
    largest = max((float(pixels.abs().max()) for pixels in theirs.decoded), default=1.0)
    levels = Tolerance(0.0, (decoded.atol + decoded.rtol * largest) / 2 + 1.001 / 255)
    found = [
        _row("A19", "sigmas", [ours.sigmas], [theirs.sigmas], EXACT),
        _row("A20", "mu", _numbers([ours.mu]), _numbers([theirs.mu]), EXACT),
        _row(
            "A21",
            "timesteps",
            _numbers(s.timestep for s in ours.steps),
            _numbers(s.timestep for s in theirs.steps),
            EXACT,
        ),
        row("A22", "preprocessed pictures", [e.pixels for e in ours.encoded], [e.pixels for e in theirs.encoded]),
        row("A23", "prompt embeds", [ours.cond.embeds], [theirs.cond.embeds]),
        _row("A23", "prompt mask", _mask(ours.cond), _mask(theirs.cond), EXACT),
        row("A23", "negative prompt embeds", _embeds(ours.uncond), _embeds(theirs.uncond)),
        _row("A23", "negative prompt mask", _mask(ours.uncond), _mask(theirs.uncond), EXACT),
        row("A24", "initial latents", [ours.start], [theirs.start]),
        row("A25", "latents of pictures", [e.latents for e in ours.encoded], [e.latents for e in theirs.encoded]),
    ]
    for place, (one, other) in enumerate(zip(ours.steps, theirs.steps, strict=False), start=1):
        found.append(row("A26", f"latents after step {place}", [one.tokens], [other.tokens], place))
    if len(ours.steps) != count:
        found.append(
            _row("A26", "number of steps", [s.tokens for s in ours.steps], [s.tokens for s in theirs.steps], EXACT)
        )
    found += [
        row("A27", "combined prediction", _each(ours, "combined"), _each(theirs, "combined"), count),
        row("A28", "norm of the prediction", _norms(ours, 0), _norms(theirs, 0), count),
        row("A28", "norm of the combined one", _norms(ours, 1), _norms(theirs, 1), count),
        row("A29", "guided prediction", _each(ours, "guided"), _each(theirs, "guided"), count),
        _row("A30", "decoded latents", ours.decoded, theirs.decoded, decoded),
        _row("A31", "final picture, 8 bits", _levels(ours), _levels(theirs), levels),
    ]
    return [one for one in found if one is not None]


def batch_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Of the rows of `count` samples at once the worst of each feature."""
    worst: dict[str, Row] = {}
    for row in rows:
        known = worst.get(row.feature)
        if known is None or _badness(row) > _badness(known):
            worst[row.feature] = row
    return [
        attrs.evolve(row, feature="A32", stage=f"{count} at once, {feature}: {row.stage}")
        for feature, row in worst.items()
    ]


def _badness(row: Row) -> tuple[bool, float]:
    return not row.equal, math.inf if row.absolute is None else row.absolute


def _row(feature: str, stage: str, found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: Tolerance) -> Row:
    def unequal(note: str) -> Row:
        return Row(
            feature=feature, stage=stage, absolute=None, relative=None, tolerance=tolerance, equal=False, note=note
        )

    if len(found) != len(wanted):
        return unequal(f"{len(found)} here, {len(wanted)} there")
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(found, wanted, strict=True) if a.shape != b.shape]
    if shapes:
        return unequal(f"shape {shapes[0][0]} here, {shapes[0][1]} there")
    if not found:
        return Row(
            feature=feature,
            stage=stage,
            absolute=0.0,
            relative=0.0,
            tolerance=tolerance,
            equal=True,
            note="not part of this run",
        )
    ours = torch.cat([values.detach().double().cpu().flatten() for values in found])
    theirs = torch.cat([values.detach().double().cpu().flatten() for values in wanted])
    difference = (ours - theirs).abs()
    if not bool(difference.isfinite().all()):
        return unequal("values that are not finite")
    absolute, largest = float(difference.max()), float(theirs.abs().max())
    return Row(
        feature=feature,
        stage=stage,
        absolute=absolute,
        relative=absolute / largest if largest else absolute,
        tolerance=tolerance,
        equal=bool((difference <= tolerance.atol + tolerance.rtol * theirs.abs()).all()),
    )


def _numbers(values: Iterable[float | None]) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values if value is not None]


def _embeds(cond: Conditioning | None) -> list[Tensor]:
    return [] if cond is None else [cond.embeds]


def _mask(cond: Conditioning | None) -> list[Tensor]:
    """How many tokens of each sample are its own: what a mask says."""
    return [] if cond is None else [torch.tensor(cond.lengths)]


def _each(trace: Trace, name: str) -> list[Tensor]:
    found = (getattr(step, name) for step in trace.steps)
    return [values for values in found if values is not None]


def _norms(trace: Trace, which: int) -> list[Tensor]:
    return [step.norms[which] for step in trace.steps if step.norms is not None]


def _levels(trace: Trace) -> list[Tensor]:
    """8-bit pictures in [0, 1]."""
    return [torch.from_numpy(np.asarray(picture) / np.float64(255)) for picture in trace.pictures]


@attrs.frozen(kw_only=True)
class Report:
    """A comparison as a whole. title: what was compared. notes: what was set equal for it."""

    title: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def misses(self) -> int:
        """How many rows are outside their tolerance."""
        return sum(not row.equal for row in self.rows)

    def as_text(self) -> str:
        """A line per row; differences as absolute and relative numbers."""
        stages = max(len(row.stage) for row in self.rows)
        bounds = max(len(str(row.tolerance)) for row in self.rows)
        lines = [
            self.title,
            *(f"note: {note}" for note in self.notes),
            f"{'':4} {'stage':<{stages}}  {'absolute':>8}  {'relative':>8}  {'tolerance':<{bounds}}  verdict",
        ]
        for row in self.rows:
            numbers = "  ".join(f"{_number(value):>8}" for value in (row.absolute, row.relative))
            verdict = ("ok" if row.equal else "MISS") + (f" ({row.note})" if row.note else "")
            lines.append(f"{row.feature:4} {row.stage:<{stages}}  {numbers}  {row.tolerance!s:<{bounds}}  {verdict}")
        right = len(self.rows) - self.misses
        return "\n".join([*lines, f"{right} of {len(self.rows)} within tolerance"])

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**attrs.asdict(self), "misses": self.misses}


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
