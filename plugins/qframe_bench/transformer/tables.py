"""Measures all batches one after another, and prints what was measured as tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn

from qframe.interfaces import Grid
from qframe_bench.measuring import Measured, Ratio, measure, table
from qframe_bench.transformer.contestants import (
    networks,
    random_batch,
    run_groups,
    run_groups_apart,
    run_packed,
    run_padded,
)
from qframe_bench.transformer.profiled import Profile, profiled
from qframe_bench.transformer.settings import Settings

_TEXTS = {"77": (77, 77, 77, 77), "mixed": (77, 31, 120, 54)}
_SHAPES = (1, 2, 4, 8, 16)
_SAMPLES = 16


@attrs.frozen(kw_only=True)
class Comparison:
    """What was measured of a batch of four samples.

    Attributes:
        s: The side of the small pictures in tokens.
        text: Which prompts the samples have: "77" tokens each, or "mixed" lengths.
        contestants: Time and memory of each contestant.
        ratios: The comparisons, with what is promised about them.
    """

    s: int
    text: str
    contestants: dict[str, Measured]
    ratios: tuple[Ratio, ...]


@attrs.frozen(kw_only=True)
class Flatness:
    """What was measured of a batch of 16 samples that have several shapes.

    Attributes:
        shapes: The number of different shapes.
        packed: Time and memory of the packed pass.
        grouped: Time and memory of diffusers' transformer, with one call per shape.
        time: The time of the packed pass, divided by its time for samples of a single shape.
        memory: The same for its memory.
    """

    shapes: int
    packed: Measured
    grouped: Measured
    time: Ratio
    memory: Ratio


@attrs.frozen(kw_only=True)
class Report:
    """Everything that one run of the benchmark has measured.

    Attributes:
        settings: What was asked for.
        comparisons: One for each size and each kind of prompts.
        flatness: One for each number of shapes.
        profile: Operations per second and time by component; None if they were not asked for.
    """

    settings: Settings
    comparisons: tuple[Comparison, ...]
    flatness: tuple[Flatness, ...]
    profile: Profile | None


def run(settings: Settings, tell: Callable[[str], None]) -> Report:
    """Measure everything. `tell` hears what is measured next, because a CPU needs minutes for all of it at s = 16."""
    device = torch.device(settings.device)
    tell(f"networks: {settings.layers} layers of width {settings.width}")
    stock, own = networks(settings)
    comparisons = []
    for s in settings.s:
        for text, lengths in _TEXTS.items():
            tell(f"s = {s}, text {text}")
            batch = random_batch(settings, seeds(s), lengths)
            contestants = {
                "packed": partial(run_packed, own, batch),
                "groups": partial(run_groups, stock, batch.by_shape()),
                "groups, accumulated": partial(run_groups_apart, stock, batch.by_shape()),
                "padded": partial(run_padded, stock, batch),
            }
            if len(set(lengths)) == 1:
                uniform = batch.take([2, 2, 3, 3])
                contestants["uniform"] = partial(run_packed, own, uniform)
                contestants["uniform, diffusers"] = partial(run_groups, stock, [uniform])
            found = measure(contestants, repeats=settings.repeats, device=device)
            comparisons.append(Comparison(s=s, text=text, contestants=found, ratios=ratios(found)))
    return Report(
        settings=settings,
        comparisons=tuple(comparisons),
        flatness=_flatness(settings, stock, own, device, tell),
        profile=profiled(settings, own, seeds(settings.s[-1]), _TEXTS["77"]) if settings.profile else None,
    )


def seeds(s: int) -> tuple[tuple[Grid, ...], ...]:
    """The grids of four samples: two with two pictures of s x s tokens, and two with two pictures of 2s x 2s."""
    return (((1, s, s),) * 2,) * 2 + (((1, 2 * s, 2 * s),) * 2,) * 2


def ratios(found: dict[str, Measured]) -> tuple[Ratio, ...]:
    """The comparisons of a packed batch with the others, and what is promised about them."""
    packed, groups, padded = found["packed"], found["groups"], found["padded"]
    apart = found["groups, accumulated"]
    promised = [
        Ratio(name="time, packed / two uniform groups", value=packed.times(groups), most=1.05),
        Ratio(name="time, packed / padded and masked", value=packed.times(padded), most=0.75),
        Ratio(name="memory, packed / two uniform groups", value=packed.peak_bytes / groups.peak_bytes, most=1.0),
        Ratio(name="memory, packed / groups accumulated one by one", value=packed.peak_bytes / apart.peak_bytes),
        Ratio(name="memory, packed / padded and masked", value=packed.peak_bytes / padded.peak_bytes),
    ]
    if "uniform" in found:
        own, theirs = found["uniform"], found["uniform, diffusers"]
        promised += [
            Ratio(name="time, uniform batch / diffusers", value=own.times(theirs), most=1.0),
            Ratio(name="memory, uniform batch / diffusers", value=own.peak_bytes / theirs.peak_bytes, most=1.0),
        ]
    return tuple(promised)


def shapes_of(s: int, count: int) -> list[tuple[Grid, ...]]:
    """The grids of 16 samples that have `count` different shapes, no two of which have the same number of tokens.

    All samples together have the same number of tokens for every `count`.
    """
    around = range(1, count // 2 + 1)
    widths = [0] if count == 1 else [sign * step for step in around for sign in (-1, 1)]
    shapes: list[tuple[Grid, ...]] = [((1, max(s // 2, 1), 2 * s + width),) for width in widths]
    return shapes * (_SAMPLES // count)


def _flatness(
    settings: Settings,
    stock: nn.Module,
    own: Any,
    device: torch.device,
    tell: Callable[[str], None],
) -> tuple[Flatness, ...]:
    s = max(settings.s[-1], 8)  # smaller pictures have too few columns to make 16 different shapes of
    tell("more and more shapes")
    batches = {count: random_batch(settings, shapes_of(s, count), [77] * _SAMPLES) for count in _SHAPES}
    contestants = {("packed", count): partial(run_packed, own, batch) for count, batch in batches.items()} | {
        ("grouped", count): partial(run_groups, stock, batch.by_shape()) for count, batch in batches.items()
    }
    names = {f"{kind} {count}": run for (kind, count), run in contestants.items()}
    found = measure(names, repeats=settings.repeats, device=device)
    first = found["packed 1"]
    return tuple(
        Flatness(
            shapes=count,
            packed=(packed := found[f"packed {count}"]),
            grouped=found[f"grouped {count}"],
            time=Ratio(name="time", value=packed.times(first), most=1.1),
            memory=Ratio(name="memory", value=packed.peak_bytes / first.peak_bytes, most=1.1),
        )
        for count in _SHAPES
    )


def as_text(report: Report) -> str:
    """Format a report as tables."""
    s = report.settings
    checkpointing = ", gradient checkpointing" if s.gradient_checkpointing else ""
    parts = [f"width {s.width}, {s.layers} layers, {s.device}, {s.dtype}{checkpointing}; medians of {s.repeats}"]
    for one in report.comparisons:
        rows = [[name, f"{m.seconds:.3f} s", _mib(m.peak_bytes)] for name, m in one.contestants.items()]
        title = f"s = {one.s}, text {one.text}: 2 x [2 pictures of s x s] + 2 x [2 pictures of 2s x 2s]"
        parts.append("\n".join([title, table(["", "time", "peak"], rows), *map(str, one.ratios)]))
    rows = [
        [
            str(row.shapes),
            f"{row.packed.seconds:.3f} s",
            f"{row.time.value:.2f}",
            _mib(row.packed.peak_bytes),
            f"{row.memory.value:.2f}",
            f"{row.grouped.seconds:.3f} s",
            _mib(row.grouped.peak_bytes),
        ]
        for row in report.flatness
    ]
    headings = ["shapes", "packed", "to 1", "peak", "to 1", "a call per shape", "peak"]
    worst = max((ratio for row in report.flatness for ratio in (row.time, row.memory)), key=lambda r: r.value)
    parts.append(f"16 samples of as many tokens, in more and more shapes\n{table(headings, rows)}\nlargest: {worst}")
    if report.profile is not None:
        parts.append(report.profile.as_text())
    return "\n\n".join(parts)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
