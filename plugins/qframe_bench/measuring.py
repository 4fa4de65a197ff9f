"""Measures the time and the peak memory of several functions side by side in one process, and formats tables of both.

The measured functions are called contestants. In each turn, every contestant runs once, one after another, so that
other work on the machine slows all of them down alike. On a CPU the benchmark compares the processor time of this
process and not the time on the clock. Therefore the ratio of two contestants' times is reliable even on a busy machine;
the seconds themselves are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch.profiler import ProfilerActivity, profile

Contestant = Callable[[], object]
"""A function without arguments whose time and memory are measured; what it returns is ignored."""


@attrs.frozen
class Seconds:
    """The time that one piece of work took, read from two clocks.

    Attributes:
        wall: Seconds on the clock, between the start and the end of the work.
        processor: Seconds of processor time of this process, added up over its threads.
    """

    wall: float
    processor: float

    def on(self, device: torch.device) -> float:
        """Return the seconds to compare for work on this device: the processor time on a CPU, else the wall time.

        Other programs on the machine lengthen the wall time, but hardly the processor time.
        """
        return self.processor if device.type == "cpu" else self.wall


@attrs.frozen(kw_only=True)
class Measured:
    """The time and the memory that one contestant (a measured function) took.

    Attributes:
        turns: The seconds that the contestant took in each turn; in a turn, every contestant runs once.
        peak_bytes: The most bytes of tensors that the contestant had allocated at the same time.
    """

    turns: tuple[float, ...]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """The median of the seconds that the contestant took over all turns."""
        return statistics.median(self.turns)

    def times(self, other: Measured) -> float:
        """Return how many times as long as `other` this contestant took.

        This is the median over all turns of (seconds of this contestant) / (seconds of `other` in the same turn). It is
        rounded to two decimal places, because even two runs of the same work differ in the third.
        """
        return round(median_ratio(self.turns, other.turns), 2)


@attrs.frozen(kw_only=True)
class Ratio:
    """One measurement divided by another, and the limit that qframe promises for the result.

    Attributes:
        name: What is divided by what, as words for the table.
        value: The result of the division.
        most: The largest value that keeps the promise; None if nothing is promised.
    """

    name: str
    value: float
    most: float | None = None

    @property
    def kept(self) -> bool:
        """Whether `value` is at most `most`, or nothing is promised. A value that is NaN breaks a promise."""
        return self.most is None or self.value <= self.most

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.name}  {_short(self.value)}"
        return f"{self.name}  {_short(self.value)}  (at most {self.most:g}: {'kept' if self.kept else 'NOT KEPT'})"


def measure(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, Measured]:
    """Measure the time of several functions (contestants), and after that the peak memory of each in one more call.

    Args:
        contestants: The functions by name.
        repeats: How many turns are measured, after a first turn that only warms up; in a turn, every contestant runs
            once.
        device: Where the contestants compute.
    """
    taken = turns(contestants, repeats=repeats, device=device)
    return {
        name: Measured(turns=tuple(one.on(device) for one in taken[name]), peak_bytes=peak_bytes(run, device))
        for name, run in contestants.items()
    }


def medians(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds that each of several functions (contestants) takes.

    In each of `repeats` turns, every function runs once; a turn that only warms up comes before. The seconds are
    processor time if `device` is a CPU, else wall time.
    """
    found = turns(contestants, repeats=repeats, device=device)
    return {name: statistics.median(one.on(device) for one in seconds) for name, seconds in found.items()}


def turns(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, list[Seconds]]:
    """Run every contestant once per turn, and return for each contestant the time that each turn took.

    Args:
        contestants: The functions by name.
        repeats: How many turns are measured, after a first turn that only warms up.
        device: Where the contestants compute; the clocks are read only when this device has finished its work.
    """
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
    """Divide the seconds of one contestant by those of another, turn by turn, and return the median of the ratios.

    Both sequences have one item per turn. Other work on the machine slows both contestants of a turn down, so it hardly
    changes the ratio.
    """
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def peak_bytes(run: Contestant, device: torch.device) -> int:
    """Call `run` once, and return the most bytes of tensors that it had allocated at the same time.

    Memory that the allocator has reserved but that no tensor uses does not count.

    On CUDA the allocator counts the bytes. On a CPU the profiler records every tensor that is allocated and freed, also
    inside operations; the profiler does not see what a library allocates without torch's allocator.
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
    """Measure how many operations per second the device reaches in one product of two random [side, side] matrices.

    A product has 2 * side**3 operations. Nothing that a network computes reaches more operations per second, so the
    result is the upper bound that the speed of a forward or backward pass is compared with.

    Args:
        device: Where the product is computed.
        dtype: The dtype of both matrices.
        side: The number of rows and columns of both matrices.
        repeats: How many products are timed; the median counts.
    """
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = medians({"product": lambda: a @ b}, repeats=repeats, device=device)["product"]
    return 2 * side**3 / seconds


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a text table, the first column aligned to the left and the others to the right."""
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
    """Read both clocks when the device has finished the work that was given to it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


def _short(value: float) -> str:
    """A ratio for people: two places, or three where the value is below 0.1."""
    return f"{value:.2f}" if not abs(value) < 0.1 else f"{value:.3f}"
