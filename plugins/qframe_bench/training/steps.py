"""Compares a training step with its forward pass, backward pass and optimizer alone, and measures reading of examples.

In each turn every contestant takes one step over the same batch; `qframe_bench.measuring` says how the time is
measured. Examples of the embedded model have only a few kilobytes, so reading is measured with random examples of the
size that a published model has.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qframe.config.schema import Config
from qframe.errors import ConfigError
from qframe.interfaces import Example
from qframe.progress import SILENT, Progress
from qframe.train.loop import StepSetup, optimizer_step
from qframe.train.order import make_order, sample_sizes
from qframe.train.parts import step_setup
from qframe.train.passes import TrainingPass, step_passes
from qframe.train.prefetch import made_ahead
from qframe.train.readings import read as read_results
from qframe.train.signals import StopSignals
from qframe.train.state import TrainingState
from qframe.train.trainer import Trainer
from qframe_bench.measuring import Contestant, Ratio, Seconds, median_ratio, table, turns
from qframe_bench.training.index import Opened, open_index
from qframe_bench.training.reading import PUBLISHED_SIZES, ReadPace, published_size_examples, read_pace

_READ_SIZE = "1024 x 1024"
_READ_ROUNDS = 12
_INDEX_SECONDS, _INDEX_BYTES = 1.0, 200_000_000
"""What opening an index of a million entries may take at most."""


@attrs.frozen(kw_only=True)
class Report:
    """The result of one run of `qframe bench train`.

    Attributes:
        family: The name of the family that was trained.
        device: The type of the device, such as "cpu".
        batch: The number of samples in the batch.
        repeats: How many turns were measured.
        measured: The median wall time and processor time of a step of each contestant, by the contestant's name.
        read: The time that reading an example took; None if reading was not measured.
        entries: The number of entries in the index that was opened.
        index: The time and memory that opening this index took; None if no index was opened.
        ratios: Measurements divided by one another, each with the limit that is promised for it.
    """

    family: str
    device: str
    batch: int
    repeats: int
    measured: Mapping[str, Seconds]
    read: ReadPace | None
    entries: int
    index: Opened | None
    ratios: tuple[Ratio, ...]

    @property
    def kept(self) -> bool:
        """Whether every ratio is within the limit that is promised for it."""
        return all(ratio.kept for ratio in self.ratios)

    def __str__(self) -> str:
        rows = [[name, f"{one.wall:.4f} s", f"{one.processor:.4f} s"] for name, one in self.measured.items()]
        lines = [
            f"{self.family} on {self.device}, a batch of {self.batch}; medians of {self.repeats}",
            table(["", "wall", "processor"], rows),
        ]
        if self.read is not None:
            megabytes = self.read.bytes / 1e6
            lines.append(f"{1 / self.read.later.wall:.0f} examples of {megabytes:.1f} MB read in a second")
        if self.index is not None:
            opened, memory = 1000 * self.index.wall, self.index.bytes / 1e6
            lines.append(f"index of {self.entries:,} entries: opened in {opened:.1f} ms, {memory:.0f} MB")
        return "\n".join([*lines, "", *map(str, self.ratios)])


def compare(
    config: Config, *, repeats: int, examples: int, read: bool, entries: int, progress: Progress = SILENT
) -> Report:
    """Measure training steps, and if asked for also reading examples and opening an index; return all results.

    Args:
        config: The configuration of the training run that the steps belong to.
        repeats: How many turns are measured.
        examples: How many records of the data set are encoded, from its beginning.
        read: Whether to measure how fast examples are read from a cache, too.
        entries: The number of entries in the index that is opened; 0 means that no index is opened.
        progress: Is told about the encoding of the records.
    """
    config = attrs.evolve(config, train=attrs.evolve(config.train, gradient_accumulation=1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = _Bench.of(config, folder / "cache", examples, progress)
        found = bench.run(repeats)
        pace = None
        if read:
            pace = read_pace(
                published_size_examples(folder / "read", *PUBLISHED_SIZES[_READ_SIZE]), repeats=_READ_ROUNDS
            )
        index = open_index(folder / "index", entries) if entries else None
    device = bench.setup.device
    return Report(
        family=config.family,
        device=device.type,
        batch=len(bench.setup.order.batch(0).indices),
        repeats=repeats,
        measured={name: _median(several) for name, several in found.items()},
        read=pace,
        entries=entries,
        index=index,
        ratios=(*step_ratios(found, device), *_read_ratios(pace), *_index_ratios(index, entries)),
    )


def step_ratios(found: Mapping[str, Sequence[Seconds]], device: torch.device) -> tuple[Ratio, ...]:
    """Divide the measured times by one another, and return the ratios with the limits that are promised for them.

    A ratio is the median over all turns; in a turn, everything is run once. On a CPU a ratio is made of processor
    times, and a second ratio of wall times, for which nothing is promised, follows it.

    Args:
        found: The times of each turn, by name: "cached step" and "live step" are steps of the training loop with cached
            and with live examples; "bare" and "bare again" are the forward passes, the backward pass and the optimizer
            of such a step alone; "waiting for data" is the time that a cached step waits for its batch.
        device: Where the steps were computed.
    """

    def ratio(name: str, one: str, other: str, most: float | None) -> list[Ratio]:
        counted = [[turn.on(device) for turn in found[who]] for who in (one, other)]
        passed = [[turn.wall for turn in found[who]] for who in (one, other)]
        wall = [Ratio(name=f"{name}, wall", value=median_ratio(*passed))] if device.type == "cpu" else []
        return [Ratio(name=name, value=median_ratio(*counted), most=most), *wall]

    return (
        *ratio("cached step / forward, backward and optimizer alone", "cached step", "bare", 1.02),
        *ratio("waiting for data / cached step", "waiting for data", "cached step", 0.005),
        *ratio("cached step / live step", "cached step", "live step", None),
        *ratio("the same work twice: bare again / bare", "bare again", "bare", None),
    )


def _read_ratios(pace: ReadPace | None) -> list[Ratio]:
    """What is promised about reading: examples are read at 0.8 of the speed of their bytes or faster."""
    if pace is None:
        return []
    name = f"reading an example of {_READ_SIZE} / its bytes raw"
    return [
        Ratio(name=name, value=_either_clock(pace.later, pace.raw), most=1 / 0.8),
        Ratio(name=f"{name}, first epoch, with checksums", value=_either_clock(pace.first, pace.raw)),
    ]


def _either_clock(one: Seconds, other: Seconds) -> float:
    """The smaller one of the ratios of wall time and of processor time.

    The best rounds of both sides may be far apart in time, so other work may have slowed one of them down.
    """
    return min(one.wall / other.wall, one.processor / other.processor)


def _index_ratios(index: Opened | None, entries: int) -> list[Ratio]:
    if index is None:
        return []
    return [
        Ratio(name=f"opening an index of {entries:,} entries / a second", value=index.wall / _INDEX_SECONDS, most=1.0),
        Ratio(name="its memory / 200 MB", value=index.bytes / _INDEX_BYTES, most=1.0),
    ]


def _median(several: Sequence[Seconds]) -> Seconds:
    return Seconds(statistics.median(one.wall for one in several), statistics.median(one.processor for one in several))


@attrs.frozen(eq=False)
class _Bench:
    """One batch of a run, with cached and with live examples.

    Attributes:
        setup: What a step of the run needs, with cached examples.
        live: The same examples, encoded each time they are read.
        state: The state of training. Its step counter stays 0, so that every step takes the first batch.
    """

    setup: StepSetup
    live: Sequence[Example]
    state: TrainingState

    @classmethod
    def of(cls, config: Config, folder: Path, examples: int, progress: Progress) -> _Bench:
        """Encode records into a cache in `folder`, and load what a step needs."""
        live_config = attrs.evolve(config, cache=attrs.evolve(config.cache, enabled=False))
        cached = Trainer(attrs.evolve(config, cache=attrs.evolve(config.cache, enabled=True)), progress=progress)
        live = Trainer(live_config, progress=progress)
        records = cached.records[:examples]
        encoded = cached.cache(folder, records=records)
        cached.release("encoder", "codec")
        state = cached.prepare()
        parts, train = cached.load("denoiser"), config.train
        parts.denoiser.module.train()
        sizes = sample_sizes(encoded, parts.denoiser_spec.patch)
        setup = step_setup(
            cached,
            train,
            encoded,
            make_order(sizes, train, lambda index: records[index].id),
            progress=SILENT,
            observe=lambda step, metrics: None,
            save=lambda: None,
        )
        return cls(setup, live.cache(records=records), state)

    def run(self, repeats: int) -> dict[str, list[Seconds]]:
        """Let the contestants run in turns, and return what each turn took."""
        live_setup = attrs.evolve(self.setup, examples=self.live, ahead=0)
        with made_ahead(_again(self.setup), self.setup.ahead) as ready, made_ahead(_again(live_setup), 0) as encoded:
            cached, live = _Step(self.setup, self.state, ready), _Step(live_setup, self.state, encoded)
            cached()
            contestants: dict[str, Contestant] = {
                "bare": partial(_bare, self.setup, self.state, cached.passes),
                "cached step": cached,
                "live step": live,
                "bare again": partial(_bare, self.setup, self.state, cached.passes),
            }
            cached.waited.clear()
            found = turns(contestants, repeats=repeats, device=self.setup.device)
        return {**found, "waiting for data": cached.waited[1:]}


@attrs.frozen(eq=False)
class _Pass:
    """The arguments of one forward pass of the network, and the attention kernels that it could choose from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kernels: list[SDPBackend]


@attrs.define(eq=False)
class _Step:
    """A contestant that takes one step of the training loop each time it is called.

    Attributes:
        setup: What the step needs.
        state: The state of training that the step starts from.
        batches: The passes of this step, again and again.
        passes: The forward passes of the last step.
        waited: For each step, how long its thread waited for its batches.
    """

    setup: StepSetup
    state: TrainingState
    batches: Iterator[TrainingPass]
    passes: list[_Pass] = attrs.field(factory=list)
    waited: list[Seconds] = attrs.field(factory=list)

    def __call__(self) -> None:
        self.passes.clear()
        self.waited.append(Seconds(0.0, 0.0))

        def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.passes.append(_Pass(args, kwargs, _kernels()))

        with self.setup.denoiser.module.register_forward_pre_hook(entered, with_kwargs=True):
            taken = optimizer_step(self.setup, self.state, self._timed(), StopSignals())
        if not self.passes:
            raise ConfigError("this denoiser does not enter its network by `forward`, so nothing can be measured")
        if taken is None or not read_results([taken], None)[0].finite:
            raise ConfigError("the loss of the measured step is not finite", "Lower train.learning_rate.")

    def _timed(self) -> Iterator[TrainingPass]:
        while True:
            wall, processor = time.perf_counter(), time.thread_time()
            one = next(self.batches)
            before = self.waited[-1]
            self.waited[-1] = Seconds(
                before.wall + time.perf_counter() - wall, before.processor + time.thread_time() - processor
            )
            yield one


def _again(setup: StepSetup) -> Iterator[TrainingPass]:
    """The passes of the first step, without end."""
    while True:
        yield from step_passes(setup, 0)


def _bare(setup: StepSetup, state: TrainingState, passes: Sequence[_Pass]) -> None:
    """Run the same forward passes, take a simple loss of their outputs, and run the backward pass and the optimizer."""
    with sdpa_kernel(passes[0].kernels):
        losses = []
        with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=setup.config.precision == "bfloat16"):
            for one in passes:
                losses.append(_first(setup.denoiser.module(*one.args, **one.kwargs)).float().square().mean())
        torch.stack(losses).sum().backward()
    for part in state.optimizers.parts:
        part.step()
    state.optimizers.zero_grad()


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _kernels() -> list[SDPBackend]:
    """The attention kernels that torch may choose from at this moment."""
    enabled = {
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    return [kernel for kernel, on in enabled.items() if on]
