"""Measuring contestants side by side in one run: time by turns, peak memory by allocations; and the tables of both.

Contestants take turns, so that other work on the machine falls on all of them; and on a CPU it is the time of this
process that counts, not the clock. So ratios mean something even on a busy machine; seconds do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch.profiler import ProfilerActivity, profile

Contestant = Callable[[], object]


@attrs.frozen
class Seconds:
    """wall: as they pass. processor: of this process, in all its threads."""

    wall: float
    processor: float

    def on(self, device: torch.device) -> float:
        """Those that count: of a CPU the processor's, which other programs' work does not lengthen."""
        return self.processor if device.type == "cpu" else self.wall


@attrs.frozen(kw_only=True)
class Measured:
    """One contestant: seconds of each of its turns, and the most bytes of tensors alive at once beside its inputs."""

    turns: tuple[float, ...]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """The median of its turns."""
        return statistics.median(self.turns)

    def times(self, other: Measured) -> float:
        """Its time to another's, by turns, to two places: turns of equal work differ by more than the third."""
        return round(median_ratio(self.turns, other.turns), 2)


@attrs.frozen(kw_only=True)
class Ratio:
    """A comparison. most: what it should be at most; None where nothing is promised."""

    name: str
    value: float
    most: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise holds; a value that is no number keeps none."""
        return self.most is None or self.value <= self.most

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.name}  {self.value:.2f}"
        return f"{self.name}  {self.value:.2f}  (at most {self.most:.2f}: {'kept' if self.kept else 'NOT KEPT'})"


def measure(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, Measured]:
    """Time of each in `repeats` turns, after one that does not count; then the peak memory of each."""
    taken = turns(contestants, repeats=repeats, device=device)
    return {
        name: Measured(turns=tuple(one.on(device) for one in taken[name]), peak_bytes=peak_bytes(run, device))
        for name, run in contestants.items()
    }


def medians(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each: the median of `repeats` turns, after one that does not count."""
    found = turns(contestants, repeats=repeats, device=device)
    return {name: statistics.median(one.on(device) for one in seconds) for name, seconds in found.items()}


def turns(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, list[Seconds]]:
    """What each of `repeats` turns of every contestant took, by turns, after one that does not count."""
    found: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = _now(device)
            run()
            ended = _now(device)
            if turn:
                found[name].append(Seconds(ended.wall - started.wall, ended.processor - started.processor))
    return found


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over turns of one divided by the other: what comes and goes beside them falls on both."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def peak_bytes(run: Contestant, device: torch.device) -> int:
    """The most bytes alive at once of what `run` allocates: exact, whatever the allocator keeps for later.

    On CUDA the allocator counts. On a CPU the profiler sees every tensor, also those inside operations, come and go;
    what a library takes for itself past torch's allocator is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = most = 0
    for _, change in sorted(changes, key=lambda at: at[0]):
        alive += change
        most = max(most, alive)
    return most


def matmul_ceiling(device: torch.device, dtype: torch.dtype, *, side: int, repeats: int = 5) -> float:
    """Operations per second of one large product of matrices [side, side]: what nothing else comes near to."""
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = medians({"product": lambda: a @ b}, repeats=repeats, device=device)["product"]
    return 2 * side**3 / seconds


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under headings, the first column to the left and the others to the right."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _now(device: torch.device) -> Seconds:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())
