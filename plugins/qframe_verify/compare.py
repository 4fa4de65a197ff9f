"""Compares the trace of qframe's sampling run with that of an oracle, stage by stage, and formats a table.

An oracle is another implementation that is known to be right. A trace is what a run computed at each stage (sigmas,
encoded pictures, latents after each step, ...). The stages have the ids of docs/features.md, such as "A26".
"""

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
    """The largest accepted difference between a number of qframe and the number of the oracle.

    Every pair of numbers must satisfy |ours - theirs| <= atol + rtol * |theirs|.

    Attributes:
        rtol: Relative tolerance, a factor of the oracle's number.
        atol: Absolute tolerance.
    """

    rtol: float
    atol: float

    def __str__(self) -> str:
        if not self.rtol:
            return f"{self.atol:.0e}" if self.atol else "exact"
        return f"{self.rtol:.0e} rel + {self.atol:.0e}"


EXACT = Tolerance(0.0, 0.0)
FLOAT32 = Tolerance(1e-4, 1e-6)
_BFLOAT16 = 2.0**-7  # one unit in the last place of a bfloat16 number, relative to the number
_REORDERED = 1e-5  # what another order of summation changes in float32 networks, relative to the largest value


@attrs.frozen(kw_only=True)
class Row:
    """The result of comparing one stage.

    Attributes:
        feature: The id of the stage in docs/features.md.
        stage: The name of the stage.
        absolute: The largest absolute difference between a number of qframe and that of the oracle; None if the values
            could not be subtracted (see `note`).
        relative: `absolute`, divided by the largest absolute number of the oracle; None if `absolute` is None.
        tolerance: The differences that were accepted.
        equal: Whether all differences are within the tolerance.
        note: Why the values could not be subtracted (different shapes, different counts, not finite), or that the run
            does not have this stage; else "".
    """

    feature: str
    stage: str
    absolute: float | None
    relative: float | None
    tolerance: Tolerance
    equal: bool
    note: str = ""


def compare(ours: Trace, theirs: Trace, *, tolerance: Tolerance | None = FLOAT32, amplified: float = 1.0) -> list[Row]:
    """Compare the traces of qframe and of the oracle, and return one row for each stage.

    In bfloat16, networks may round differently if tensors have another layout in memory. The tolerance is then one unit
    in the last place of the largest value; for stages from the first sampling step on, it is multiplied by the number
    of steps so far and by `amplified`. In float32, if `theirs` is marked as `reordered`, the tolerance is at least 1e-5
    times the largest value times the number of steps so far. Pixels of the final picture are rounded, so they may
    differ by one of 255 levels in addition.

    Args:
        ours: The trace of qframe's run.
        theirs: The trace of the oracle.
        tolerance: The tolerance for float32 values; None means that the run was in bfloat16.
        amplified: By how much guidance can multiply a difference: 2 s - 1 for a guidance scale s, 1 without guidance.
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
        _row("A31", "final picture, 8 bits", _levels(ours), _levels(theirs), _for_levels(decoded, theirs)),
    ]
    return [one for one in found if one is not None]


def batch_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return, for each feature, the row with the largest difference, as rows of feature "A32" (a batch).

    Args:
        rows: The rows of a comparison of several samples in one batch.
        count: The number of samples in the batch, which the rows' names mention.
    """
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
    """Return how many tokens each sample has, which is what the mask of a padded batch says."""
    return [] if cond is None else [torch.tensor(cond.lengths)]


def _each(trace: Trace, name: str) -> list[Tensor]:
    found = (getattr(step, name) for step in trace.steps)
    return [values for values in found if values is not None]


def _norms(trace: Trace, which: int) -> list[Tensor]:
    return [step.norms[which] for step in trace.steps if step.norms is not None]


def _for_levels(decoded: Tolerance, theirs: Trace) -> Tolerance:
    """Return the tolerance of pixels in [0, 1], from that of the decoded latents in [-1, 1]."""
    largest = max((float(pixels.abs().max()) for pixels in theirs.decoded), default=1.0)
    return Tolerance(0.0, (decoded.atol + decoded.rtol * largest) / 2 + 1.001 / 255)


def _levels(trace: Trace) -> list[Tensor]:
    """Return the pixels of the final pictures, scaled from 0 .. 255 to [0, 1]."""
    return [torch.from_numpy(np.asarray(picture) / np.float64(255)) for picture in trace.pictures]


@attrs.frozen(kw_only=True)
class Report:
    """The result of comparing a family with its oracle, on one request and if asked for on a batch.

    Attributes:
        title: What was compared, as a line above the table.
        notes: A sentence for each setting that was made equal on both sides.
        rows: One row for each stage.
    """

    title: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def misses(self) -> int:
        """The number of rows with a difference outside the tolerance."""
        return sum(not row.equal for row in self.rows)

    def as_text(self) -> str:
        """Return the table for a terminal, with one line per row."""
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
        """Return the report as values that JSON can hold, with the number of misses under "misses"."""
        return {**attrs.asdict(self), "misses": self.misses}


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
