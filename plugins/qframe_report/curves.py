"""Metrics as curves: what is drawn, thinned and smoothed, in the units of an SVG's view box."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from qframe_report.reading import VALID_TOKENS, Series

_MOST_POINTS = 240
_STYLES = 8
"""How many lines are told apart by colour and dash; page.css has as many."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


@attrs.frozen(kw_only=True)
class Frame:
    """Where curves are drawn, in units of the view box: its size, and the sides of the axes in it."""

    width: int = 400
    height: int = 232
    left: int = 48
    right: int = 386
    top: int = 10
    bottom: int = 208


FRAME = Frame()


@attrs.frozen(kw_only=True)
class Line:
    """A drawn line. style: colour and dash. path: of the line; band: from the least to the most value around it."""

    label: str
    style: int
    path: str
    band: str
    last: str


@attrs.frozen(kw_only=True)
class Tick:
    """A mark on an axis: where, and its text."""

    place: float
    text: str


@attrs.frozen(kw_only=True)
class Panel:
    """One picture of curves. summary: what it shows, in words. note: how it was drawn."""

    title: str
    unit: str
    summary: str
    note: str
    lines: Sequence[Line]
    across: Sequence[Tick]
    up: Sequence[Tick]


@attrs.frozen(eq=False)
class _Thinned:
    """A series in at most `_MOST_POINTS` buckets: mean (or smoothed value), least and most of each. All [P].

    limit: what the frame need not reach above.
    """

    label: str
    style: int
    steps: Floats
    middle: Floats
    least: Floats
    most: Floats
    limit: float
    span: int


Curves = Sequence[tuple[int, str, Series]]
"""Style, label and values."""


def make_panel(title: str, unit: str, curves: Curves, *, smooth: bool, from_zero: bool = False) -> Panel | None:
    """Labelled series in one frame; None if all are empty. smooth: draw an average over the values, and their range."""
    thinned = [_thin(style, label, series, smooth) for style, label, series in curves if len(series)]
    if not thinned:
        return None
    first = min(float(series.steps[0]) for _, _, series in curves if len(series))
    last = max(float(series.steps[-1]) for _, _, series in curves if len(series))
    low, high = _range(thinned, from_zero)
    hidden = sum(int((series.values > high).sum()) for _, _, series in curves)
    across, up = _ticks(first, last, whole=True), _ticks(low, high, whole=False)

    def x(step: float) -> float:
        return FRAME.left + (step - first) / max(last - first, 1e-12) * (FRAME.right - FRAME.left)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return FRAME.bottom - (inside - low) / (high - low) * (FRAME.bottom - FRAME.top)

    notes = []
    if spans := sorted({line.span for line in thinned if line.span > 1}):
        notes.append(f"The line averages about {' or '.join(map(str, spans))} steps; the faint part is single steps.")
    if hidden:
        notes.append(f"Values above the frame: {hidden}.")
    return Panel(
        title=title,
        unit=unit,
        summary=f"{title}. " + " ".join(_in_words(label, series) for _, label, series in curves if len(series)),
        note=" ".join(notes),
        lines=[_line(line, x, y) for line in thinned],
        across=[Tick(place=round(x(value), 1), text=number(value)) for value in across],
        up=[Tick(place=round(y(value), 1), text=number(value)) for value in up],
    )


def _thin(style: int, label: str, series: Series, smooth: bool) -> _Thinned:
    span = min(max(len(series) // 20, 1), 200) if smooth else 1
    # A single peak must neither flatten the rest nor carry the average off.
    limit = _limit(series.values) if smooth else float(series.values.max())
    values = _averaged(np.minimum(series.values, limit), span)
    edges = np.linspace(0, len(series), min(len(series), _MOST_POINTS) + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(series)])
    return _Thinned(
        label=label,
        style=style % _STYLES,
        steps=np.add.reduceat(series.steps.astype(float), edges) / counts,
        middle=np.add.reduceat(values, edges) / counts,
        least=np.minimum.reduceat(series.values, edges),
        most=np.maximum.reduceat(series.values, edges),
        limit=limit,
        span=span,
    )


def _averaged(values: Floats, span: int) -> Floats:
    """Exponential average, as if `span` values counted, without the pull of a start at 0."""
    if span <= 1:
        return values
    decay, total, weight = 1 - 2 / (span + 1), 0.0, 0.0
    result = np.empty_like(values)
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result[index] = total / weight
    return result


def _limit(values: Floats) -> float:
    """What a frame reaches up to: the most, unless that is twice as far up as all but 2 % of the values."""
    least, usual, most = values.min(), np.quantile(values, 0.98), values.max()
    cut = most - least > 2 * (usual - least) > 0
    return float(usual + 0.1 * (usual - least) if cut else most)


def _range(lines: Sequence[_Thinned], from_zero: bool) -> tuple[float, float]:
    """Least and most value of the frame."""
    least = min(float(line.least.min()) for line in lines)
    most = max(line.limit for line in lines)
    if from_zero and least >= 0:
        least = 0.0
    if most <= least:
        margin = abs(most) * 0.5 or 1.0
        least, most = (0.0, most + margin) if from_zero and most >= 0 else (least - margin, most + margin)
    return least, most


def _line(line: _Thinned, x: Callable[[float], float], y: Callable[[float], float]) -> Line:
    def path(values: Floats, steps: Floats) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=True))

    band = ""
    if line.span > 1:
        band = f"M {path(line.most, line.steps)} L {path(line.least[::-1], line.steps[::-1])} Z"
    middle = path(line.middle, line.steps)
    if len(line.steps) == 1:  # a point: a line of no length, drawn by its round ends
        middle += f" {middle}"
    return Line(label=line.label, style=line.style, path=f"M {middle}", band=band, last=number(float(line.middle[-1])))


def _in_words(label: str, series: Series) -> str:
    values, steps = series.values, series.steps
    lowest = int(values.argmin())
    return (
        f"{label}: from {number(float(values[0]))} at step {steps[0]} to {number(float(values[-1]))} at step "
        f"{steps[-1]}; lowest {number(float(values[lowest]))} at step {steps[lowest]}."
    )


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """Round values between two bounds, three to six of them where there is room."""
    if high <= low:
        return [low]
    raw = (high - low) / 6
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as a person reads it: 1200, 0.532, 3e-05, 12k."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value == int(value):
        return str(int(value))
    return f"{value:.3g}"


def run_panels(runs: Mapping[str, Mapping[str, Series]]) -> list[Panel]:
    """The panels of one run, or of several side by side, by their names; those without any value are left out."""
    single = len(runs) == 1

    def curves(metric: str, label: str, style: int = 0) -> list[tuple[int, str, Series]]:
        """A metric of every run: of several runs each has its own style, and its name as label."""
        return [
            (style, label, series[metric]) if single else (place, name, series[metric])
            for place, (name, series) in enumerate(runs.items())
            if metric in series
        ]

    valid, padding = curves(VALID_TOKENS, "valid"), curves("padded_tokens", "padding", style=1)
    quantiles = sorted({key for series in runs.values() for key in series if key.startswith("val_loss_")})
    held_out = [
        curve
        for place, key in enumerate(quantiles, 1)
        for curve in curves(key, f"quantile {place} of {len(quantiles)}", style=place)
    ]
    panels = [
        make_panel("Loss", "", curves("loss", "loss"), smooth=True),
        make_panel(
            "Validation loss",
            "quantile 1: least noise" if held_out and single else "",
            curves("val_loss", "all") + (held_out if single else []),
            smooth=False,
        ),
        make_panel("Gradient norm", "before clipping", curves("gradient_norm", "norm"), smooth=True),
        make_panel("Learning rate", "", curves("learning_rate", "rate"), smooth=False, from_zero=True),
        make_panel("Tokens per step", "", valid + (padding if single else []), smooth=True, from_zero=True),
        None if single else make_panel("Padding per step", "tokens", padding, smooth=True, from_zero=True),
        make_panel("Time per step", "seconds", curves("seconds", "seconds"), smooth=True, from_zero=True),
    ]
    return [panel for panel in panels if panel is not None]
