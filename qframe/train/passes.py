"""The forward passes of a run, in order, each with its batch. A thread makes them ahead of the denoiser.

A pass is a function of the run's seed and the step, so it does not matter when or in which thread it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from qframe.diffusion.copies import needs_pinning
from qframe.interfaces import Denoiser
from qframe.train.arithmetic import step_flops
from qframe.train.batch import TrainingBatch, make_batch
from qframe.train.order import BatchPortion, step_batches
from qframe.train.streams import derived_seed

if TYPE_CHECKING:
    from qframe.train.loop import StepSetup

VALID_TOKENS = ("target_tokens", "reference_tokens", "text_tokens")
COUNTED = (*VALID_TOKENS, "padded_tokens", "flops")


@attrs.frozen(eq=False, kw_only=True)
class TrainingPass:
    """One forward pass of this process.

    Attributes:
        batch: The batch, on the CPU; in pinned memory if the denoiser computes elsewhere.
        samples: How many samples the optimizer step has, over all processes.
        interruptible: Whether a signal may end the run before this pass: true for the first pass of every batch but the
            step's first batch. The step is given up then, and made again when the run is resumed.
        last: Whether it is the last pass of its optimizer step.
        counts: Whether its loss counts. A pass that is only made because other processes make one does not count.
        seed: The seed of dropout inside the network.
        counted: How many tokens of each kind are computed, and how many operations. Padded tokens belong to no sample.
            The operations are 0 if the denoiser does not declare them.
    """

    batch: TrainingBatch
    samples: int
    interruptible: bool
    last: bool
    counts: bool
    seed: int
    counted: Mapping[str, int]


def training_passes(setup: StepSetup, first: int) -> Iterator[TrainingPass]:
    """Make the passes of all steps from step `first`, counted from 0, to the end of the run."""
    for step in range(first, setup.config.max_steps):
        yield from step_passes(setup, step)


def step_passes(setup: StepSetup, step: int) -> Iterator[TrainingPass]:
    """Make the passes of one optimizer step, counted from 0."""
    rank, world = setup.processes.rank, setup.processes.world
    numbers = step_batches(setup.order, setup.config, step, world)
    portions = [setup.order.batch(number, rank, world) for number in numbers]
    samples = sum(portion.samples for portion in portions)
    before = passes = 0  # before: samples of the step in earlier batches
    for micro, portion in enumerate(portions):
        passes_of_batch = _passes(setup, numbers[micro], portion)
        for turn, (places, counts) in enumerate(passes_of_batch):
            batch = make_batch(
                [setup.examples[portion.indices[place]] for place in places],
                [before + portion.slots[place] for place in places],
                step=step,
                config=setup.config,
                schedule=setup.schedule,
                patch=setup.patch,
                loss_map=setup.loss_map,
            )
            yield TrainingPass(
                batch=batch.pinned() if needs_pinning(setup.device) else batch,
                samples=samples,
                interruptible=micro > 0 and turn == 0,
                last=micro == len(portions) - 1 and turn == len(passes_of_batch) - 1,
                counts=counts,
                seed=_dropout_seed(setup, step, passes),
                counted=_count(batch, setup.denoiser, setup),
            )
            passes += 1
        before += portion.samples


def _passes(setup: StepSetup, number: int, portion: BatchPortion) -> list[tuple[tuple[int, ...], bool]]:
    """Return the forward passes of this process in batch `number`: places in its portion, and whether the loss counts.

    If the denoiser is sharded, every process must make equally many forward passes, or the others wait for it for ever.
    So a pass has one sample then, and a process with fewer samples repeats its first one without counting its loss.
    """
    places: tuple[int, ...] = tuple(range(len(portion.indices)))
    if not setup.one_by_one:
        return [(places, True)]
    world = setup.processes.world
    most = max(len(setup.order.batch(number, rank, world).indices) for rank in range(world))
    own: list[tuple[tuple[int, ...], bool]] = [((place,), True) for place in places]
    return own + [((0,), False)] * (most - len(places))


def _count(batch: TrainingBatch, denoiser: Denoiser, setup: StepSetup) -> dict[str, int]:
    references = batch.references.grids if batch.references is not None else ((),) * len(batch.ids)
    grids = [own + given for own, given in zip(batch.noisy.grids, references, strict=True)]
    forward = denoiser.flops(grids, batch.cond.lengths)
    return {
        "target_tokens": sum(batch.noisy.lengths),
        "reference_tokens": sum(batch.references.lengths) if batch.references is not None else 0,
        "text_tokens": sum(batch.cond.lengths),
        "padded_tokens": denoiser.padding(grids, batch.cond.lengths),
        "flops": 0 if forward is None else step_flops(forward, setup.config),
    }


def _dropout_seed(setup: StepSetup, step: int, micro: int) -> int:
    """The seed of dropout in one forward pass. The first process draws what a run of one process would draw."""
    rank = setup.processes.rank
    return derived_seed(setup.config.seed, "dropout", step, micro, *([rank] if rank else []))
