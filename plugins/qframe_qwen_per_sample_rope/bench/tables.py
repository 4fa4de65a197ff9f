"""What is measured, in which order, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import nn

from qframe.benchmark import Measured, Ratio, measure, table
from qframe.interfaces import Grid
from qframe_qwen_per_sample_rope.bench.command import Settings
from qframe_qwen_per_sample_rope.bench.contestants import (
    networks,
    random_batch,
    run_groups,
    run_groups_apart,
    run_packed,
    run_padded,
)
from qframe_qwen_per_sample_rope.bench.profiled import Profile, profiled
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer

_TEXTS = {"77": (77, 77, 77, 77), "mixed": (77, 31, 120, 54)}
_SHAPES = (1, 2, 4, 8, 16)
_SAMPLES = 16


@attrs.frozen(kw_only=True)
class Comparison:
    """The four samples of one size and kind of prompts."""

    s: int
    text: str
    contestants: dict[str, Measured]
    ratios: tuple[Ratio, ...]


@attrs.frozen(kw_only=True)
class Flatness:
    """16 samples in `shapes` different shapes. grouped: through diffusers, one call per shape. Ratios: to one shape."""

    shapes: int
    packed: Measured
    grouped: Measured
    time: Ratio
    memory: Ratio


@attrs.frozen(kw_only=True)
class Report:
    """Everything that one run has measured."""

    settings: Settings
    comparisons: tuple[Comparison, ...]
    flatness: tuple[Flatness, ...]
    profile: Profile | None


def run(settings: Settings, tell: Callable[[str], None]) -> Report:
    """Measure everything. tell hears what is measured next: at s = 16 the whole takes a CPU minutes."""
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
    """Two samples with two pictures of s x s, two with two of 2s x 2s."""
    return (((1, s, s),) * 2,) * 2 + (((1, 2 * s, 2 * s),) * 2,) * 2


def ratios(found: dict[str, Measured]) -> tuple[Ratio, ...]:
    """What is promised of a packed batch."""
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
    """16 samples in `count` different shapes, all of different lengths, together as many tokens whatever `count`."""
    around = range(1, count // 2 + 1)
    widths = [0] if count == 1 else [sign * step for step in around for sign in (-1, 1)]
    shapes: list[tuple[Grid, ...]] = [((1, max(s // 2, 1), 2 * s + width),) for width in widths]
    return shapes * (_SAMPLES // count)


def _flatness(
    settings: Settings,
    stock: nn.Module,
    own: PerSampleRopeTransformer,
    device: torch.device,
    tell: Callable[[str], None],
) -> tuple[Flatness, ...]:
    s = max(settings.s[-1], 8)  # smaller pictures would have no columns left to differ in
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
    """The tables."""
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
