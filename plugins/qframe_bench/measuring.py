"""Measures the time and the peak memory of several functions side by side in one run, and prints tables of both.

The functions, called contestants, run in turns, so that other work on the machine slows all of them down alike. On a
CPU the processor time of this process counts and not the time on the clock. Therefore ratios between contestants mean
something even on a busy machine, and seconds do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch.profiler import ProfilerActivity, profile

Contestant = Callable[[], object]
"""A function that is measured each time it is called."""


@attrs.frozen
class Seconds:
    """How long something took.

    Attributes:
        wall: Seconds on the clock.
        processor: Seconds of processor time of this process, added up over its threads.
    """

    wall: float
    processor: float

    def on(self, device: torch.device) -> float:
        """The seconds that count: processor time on a CPU, which other programs do not lengthen, else wall time."""
        return self.processor if device.type == "cpu" else self.wall


@attrs.frozen(kw_only=True)
class Measured:
    """What was measured of one contestant.

    Attributes:
        turns: The seconds that each of its turns took.
        peak_bytes: The most bytes of tensors that it had allocated at once.
    """

    turns: tuple[float, ...]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """The median of the seconds of all turns."""
        return statistics.median(self.turns)

    def times(self, other: Measured) -> float:
        """How many times as long as another contestant this one took: the median of the ratios of single turns.

        The ratio is rounded to two decimal places, because even two runs of the same work differ in the third.
        """
        return round(median_ratio(self.turns, other.turns), 2)


@attrs.frozen(kw_only=True)
class Ratio:
    """A comparison of two measurements, and what is promised about it.

    Attributes:
        name: What is divided by what.
        value: The ratio.
        most: The largest ratio that keeps the promise; None if nothing is promised.
    """

    name: str
    value: float
    most: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise holds. A value that is not a number breaks it."""
        return self.most is None or self.value <= self.most

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.name}  {self.value:.2f}"
        return f"{self.name}  {self.value:.2f}  (at most {self.most:.2f}: {'kept' if self.kept else 'NOT KEPT'})"


def measure(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, Measured]:
    """Measure the time of each contestant in `repeats` turns after a warm-up turn, and then the peak memory of each."""
    taken = turns(contestants, repeats=repeats, device=device)
    return {
        name: Measured(turns=tuple(one.on(device) for one in taken[name]), peak_bytes=peak_bytes(run, device))
        for name, run in contestants.items()
    }


def medians(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, float]:
    """The seconds that each contestant takes: the median of `repeats` turns, after a warm-up turn."""
    found = turns(contestants, repeats=repeats, device=device)
    return {name: statistics.median(one.on(device) for one in seconds) for name, seconds in found.items()}


def turns(contestants: Mapping[str, Contestant], *, repeats: int, device: torch.device) -> dict[str, list[Seconds]]:
    """Let the contestants run in turns, and return what each turn took.

    Args:
        contestants: The functions by name.
        repeats: How many turns each contestant has, after a first one that is not counted.
        device: Where the contestants compute; the clock is read when this device has finished.
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
    """Divide the seconds of each turn of one contestant by those of the same turn of another; return the median ratio.

    Other work on the machine slows both contestants of a turn down, so it hardly changes the ratio.
    """
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def peak_bytes(run: Contestant, device: torch.device) -> int:
    """The most bytes that `run` has allocated at once. Memory that the allocator only keeps for later does not count.

    On CUDA the allocator counts the bytes. On a CPU the profiler records every tensor that is allocated and freed, also
    inside operations; it does not see what a library allocates without torch's allocator.
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
    """The operations per second of one large product of two [side, side] matrices.

    Nothing else that a network computes is faster, so this is the upper bound that a pass is compared with.
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
