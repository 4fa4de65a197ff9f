"""Turns the metrics of a run into curves of an SVG picture: thins and smooths them, and computes the coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from qframe_report.reading import VALID_TOKENS, Series

_MOST_POINTS = 240
_STYLES = 8  # combinations of colour and dash that templates/page.css has for lines

Floats = np.ndarray[Any, np.dtype[np.float64]]


@attrs.frozen(kw_only=True)
class Frame:
    """The size of a picture of curves, and where in it the rectangle of the axes lies.

    All values are in units of the SVG's view box; x grows to the right, y grows downwards.

    Attributes:
        width: Width of the picture.
        height: Height of the picture.
        left: x of the rectangle's left side, which is the vertical axis.
        right: x of the rectangle's right side.
        top: y of the rectangle's upper side.
        bottom: y of the rectangle's lower side, which is the horizontal axis.
    """

    width: int = 400
    height: int = 232
    left: int = 48
    right: int = 386
    top: int = 10
    bottom: int = 208


FRAME = Frame()


@attrs.frozen(kw_only=True)
class Line:
    """A curve as the page draws it.

    Attributes:
        label: The name of the curve in the legend.
        style: Which of the page's eight combinations of colour and dash the curve has, from 0 to 7.
        path: SVG path of the curve.
        band: SVG path of the area between the smallest and the largest values around a smoothed curve; "" if the curve
            was not smoothed.
        last: The last value of the curve, as text.
    """

    label: str
    style: int
    path: str
    band: str
    last: str


@attrs.frozen(kw_only=True)
class Tick:
    """A mark on an axis.

    Attributes:
        place: The coordinate of the mark along its axis (x or y), in units of the SVG's view box.
        text: The number that is written beside the mark.
    """

    place: float
    text: str


@attrs.frozen(kw_only=True)
class Panel:
    """A picture with one or more curves, and the words around the picture.

    Attributes:
        title: The heading above the picture.
        unit: The unit of the values, or another remark beside the heading; "" for none.
        summary: What the picture shows, in words, for readers who cannot see it.
        note: How the curves were smoothed, and how many values lie above the frame; "" if there is nothing to say.
        lines: The curves.
        across: The marks on the horizontal axis, whose numbers are training steps.
        up: The marks on the vertical axis, whose numbers are values of the metric.
    """

    title: str
    unit: str
    summary: str
    note: str
    lines: Sequence[Line]
    across: Sequence[Tick]
    up: Sequence[Tick]


@attrs.frozen(eq=False)
class _Thinned:
    """A series of values, summarised in P buckets of consecutive steps, at most `_MOST_POINTS`.

    Attributes:
        label: The name of the curve.
        style: Number of its combination of colour and dash.
        steps: Mean step of each bucket, [P].
        middle: Mean of the values, or of the smoothed values, of each bucket, [P].
        least: Smallest value of each bucket, [P].
        most: Largest value of each bucket, [P].
        limit: The value that the frame must reach; a few larger values may lie above it.
        span: How many steps the smoothing averages over; 1 means that nothing was smoothed.
    """

    label: str
    style: int
    steps: Floats
    middle: Floats
    least: Floats
    most: Floats
    limit: float
    span: int


# For each curve: the number of its style, its label in the legend, and its values.
Curves = Sequence[tuple[int, str, Series]]


def make_panel(title: str, unit: str, curves: Curves, *, smooth: bool, from_zero: bool = False) -> Panel | None:
    """Draw several series of values in one picture; return None if no series has a value.

    Args:
        title: The heading above the picture.
        unit: The unit of the values, or another remark beside the heading.
        curves: For each series the number of its style, its label in the legend, and its values.
        smooth: Whether to draw a moving average of the values, and behind it a band that shows their range.
        from_zero: Whether the vertical axis begins at 0, unless a value is negative.
    """
    thinned = [_thin(style, label, series, smooth) for style, label, series in curves if len(series)]
    if not thinned:
        return None
    first = min(float(series.steps[0]) for _, _, series in curves if len(series))
    last = max(float(series.steps[-1]) for _, _, series in curves if len(series))
    low, high = _range(thinned, from_zero)
    hidden = sum(int((series.values > high).sum()) for _, _, series in curves)
    across, up = _ticks(first, last, integers=True), _ticks(low, high, integers=False)

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
    # Values far above the others are cut to the limit, so that a single peak does not distort frame and average.
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
    """Return the exponential moving average over about `span` values, corrected for its start at 0."""
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
    """Return the value that the frame of a smoothed curve must reach.

    It is the largest value, unless that is more than twice as far above the smallest value as the 98 % quantile is; in
    that case it is a little above the quantile.
    """
    least, usual, most = values.min(), np.quantile(values, 0.98), values.max()
    cut = most - least > 2 * (usual - least) > 0
    return float(usual + 0.1 * (usual - least) if cut else most)


def _range(lines: Sequence[_Thinned], from_zero: bool) -> tuple[float, float]:
    """Return the smallest and the largest value that the frame shows."""
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
    if len(line.steps) == 1:  # a line of length 0 is drawn as a dot, because its ends are round
        middle += f" {middle}"
    return Line(label=line.label, style=line.style, path=f"M {middle}", band=band, last=number(float(line.middle[-1])))


def _in_words(label: str, series: Series) -> str:
    values, steps = series.values, series.steps
    lowest = int(values.argmin())
    return (
        f"{label}: from {number(float(values[0]))} at step {steps[0]} to {number(float(values[-1]))} at step "
        f"{steps[-1]}; lowest {number(float(values[lowest]))} at step {steps[lowest]}."
    )


def _ticks(low: float, high: float, *, integers: bool) -> list[float]:
    """Return up to about six round values between two bounds; only whole numbers if `integers` is True."""
    if high <= low:
        return [low]
    raw = (high - low) / 6
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    if integers:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Format a number briefly for readers, for example 1200, 0.532, 3e-05 or 12k."""
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
    """Return the pictures of curves of one run, or of several runs drawn into the same pictures.

    There is a picture for each group of metrics, such as "Loss"; a picture without values is left out.

    Args:
        runs: The metrics of each run, by the name of the run.
    """
    single = len(runs) == 1

    def curves(metric: str, label: str, style: int = 0) -> list[tuple[int, str, Series]]:
        """Return the curves of a metric: with several runs, each run has its own style, and its name as label."""
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
        make_panel("Speed", "tokens per second", curves("tokens_per_second", "tokens"), smooth=True, from_zero=True),
        make_panel(
            "Share of the device's arithmetic",
            "of the rate of a matrix product that was measured at the start",
            curves("arithmetic_share", "share"),
            smooth=True,
            from_zero=True,
        ),
    ]
    return [panel for panel in panels if panel is not None]
