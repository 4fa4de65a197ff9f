"""The training loop, top to bottom: batch, loss, clip, step, average, checkpoint."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import attrs
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qframe.config.schema import TrainConfig
from qframe.errors import NumericsError
from qframe.interfaces import PLAIN, Denoiser, Example, ForwardOptions, Schedule
from qframe.progress import Progress
from qframe.train.batch import TrainingBatch, Weigh, flow_loss, given_weight, make_batch
from qframe.train.distributed import ALONE, Processes
from qframe.train.order import BatchOrder, BatchShare, step_batches
from qframe.train.sharding import whole
from qframe.train.signals import Stopped, StopSignals
from qframe.train.state import TrainingState
from qframe.train.streams import derived_seed

log = logging.getLogger(__name__)

_MATH_ATTENTION_TOKENS = 1024
"""On a CPU the backward pass of fused attention is slower than plain matrix products up to about here."""

_VALID = ("target_tokens", "reference_tokens", "text_tokens")
_COUNTED = (*_VALID, "padded_tokens")


@attrs.frozen(eq=False, kw_only=True)
class TrainingJob:
    """What does not change while a run goes on.

    patch: of the denoiser, for packing. forward: what every forward pass is given beside its batch. weigh: where the
    loss counts.
    examine: called after a step for which `examines` is true, with its number, once it is saved and before it is
    observed; returns further metrics. Left out where the run is to stop.
    save: publishes a checkpoint of the state as it stands. observe: called after every step with its number (from 1)
    and metrics. processes: those that make every step together, each with its share of the batch; all of them save
    and observe. one_by_one: every forward pass is of one sample, and all processes make equally many of them.
    """

    config: TrainConfig
    denoiser: Denoiser
    schedule: Schedule
    patch: int
    forward: ForwardOptions = PLAIN
    weigh: Weigh = given_weight
    examples: Sequence[Example]
    order: BatchOrder
    device: torch.device
    progress: Progress
    observe: Callable[[int, Mapping[str, float]], None]
    save: Callable[[], object]
    examine: Callable[[int], Mapping[str, float]] = lambda step: {}
    examines: Callable[[int], bool] = lambda step: False
    processes: Processes = ALONE
    one_by_one: bool = False


def run_steps(job: TrainingJob, state: TrainingState) -> None:
    """Train from `state.step` to `max_steps`. Stopped after saving on a signal; NumericsError after bad steps.

    A signal is heard between the batches of a step, which may take minutes: the step is left out, and a resumed run
    takes it again as it was.
    """
    config = job.config
    bad_steps = 0
    job.denoiser.module.train()
    with StopSignals() as signals, job.progress.stage("training", config.max_steps, done=state.step) as bar:

        def asked_to_stop() -> int:
            return job.processes.most(signals.received or 0)  # not every process may have heard of it yet

        while state.step < config.max_steps:
            taken = optimizer_step(job, state, asked_to_stop)
            if taken is None:
                job.save()
                raise _stopped(asked_to_stop(), state)
            metrics, ids = taken
            state.step += 1
            bar.advance(1, loss=metrics["loss"], tokens=_valid(metrics), padded=metrics["padded_tokens"])
            asked, saved, found = asked_to_stop(), False, dict[str, float]()
            try:
                if job.examines(state.step) and not asked:
                    job.save()  # so that a signal may end at once what takes minutes
                    saved = True
                    with signals.paused():
                        found.update(job.examine(state.step))
            finally:
                job.observe(state.step, {**metrics, **found})
            bad_steps = 0 if metrics["skipped"] == 0 else bad_steps + 1
            if bad_steps > config.nan_patience:
                raise NumericsError(
                    f"the loss or its gradient was not finite in {bad_steps} steps in a row, up to step {state.step}; "
                    f"examples of the last one: {', '.join(ids[:8])}",
                    "Check these examples, or start a new run with a lower train.learning_rate: resumed, this one "
                    "would take the same steps again.",
                )
            asked = asked or asked_to_stop()
            if not saved and (asked or state.step % config.checkpoint_every == 0 or state.step == config.max_steps):
                job.save()
            if asked and state.step < config.max_steps:
                raise _stopped(asked, state)


def _stopped(asked: int, state: TrainingState) -> Stopped:
    return Stopped(asked, f"stopped at step {state.step}; everything is saved", "Go on with --resume.")


def optimizer_step(
    job: TrainingJob, state: TrainingState, asked_to_stop: Callable[[], int]
) -> tuple[dict[str, float], list[str]] | None:
    """One update from `gradient_accumulation` forward passes: its metrics and its examples.

    Skipped whole if anything is not finite. None if it was asked to stop before its last batch: nothing has changed.
    """
    started = time.monotonic()
    config, processes = job.config, job.processes
    numbers = step_batches(job.order, config, state.step, processes.world)
    shares = [job.order.batch(number, processes.rank, processes.world) for number in numbers]
    samples = sum(share.samples for share in shares)
    losses: list[torch.Tensor] = []
    tokens: Counter[str] = Counter()
    ids: list[str] = []
    before = 0  # samples of the step in earlier batches
    passes = 0
    for micro, share in enumerate(shares):
        if micro and asked_to_stop():
            state.optimizers.zero_grad()
            return None
        for places, counts in _passes(job, numbers[micro], share):
            batch = make_batch(
                [job.examples[share.indices[place]] for place in places],
                [before + share.slots[place] for place in places],
                step=state.step,
                config=config,
                schedule=job.schedule,
                patch=job.patch,
                device=job.device,
                weigh=job.weigh,
            )
            # Backward too: gradient checkpointing runs the forward pass again there, and must get the same kernels.
            with attention_kernels(job.device, max(batch.noisy.lengths)):
                loss = _forward(job, batch, samples, seed=_dropout_seed(job, state.step, passes))
                (loss if counts else loss * 0.0).backward()
            passes += 1
            if counts:
                losses.append(loss.detach())
                tokens.update(_count(batch, job.denoiser))
                ids += batch.ids
        before += share.samples
    total, *counted = processes.total([torch.stack(losses).sum().item(), *(tokens[name] for name in _COUNTED)])
    parameters = list(state.parameters.values())
    processes.sum_gradients(parameters)
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)).item()
    finite = math.isfinite(total) and math.isfinite(norm)
    rate = 0.0
    if finite:
        rate = state.optimizers.step(state.step, steps=config.max_steps)
        if state.average is not None:
            state.average.update(state.parameters, state.step)
    else:
        ids = "\n".join(processes.texts("\n".join(ids))).split("\n")
        if processes.first:
            log.warning("step %d skipped: loss %s, gradient norm %s, examples %s", state.step + 1, total, norm, ids[:8])
    state.optimizers.zero_grad()
    metrics = {
        "loss": total,
        "gradient_norm": norm,
        "learning_rate": rate,
        "seconds": time.monotonic() - started,
        "skipped": float(not finite),
        "samples": samples,
        **dict(zip(_COUNTED, map(int, counted), strict=True)),
    }
    return metrics, ids


def _count(batch: TrainingBatch, denoiser: Denoiser) -> dict[str, int]:
    """How many tokens of each kind a forward pass computes; padded ones are those of no sample."""
    references = batch.references.grids if batch.references is not None else ((),) * len(batch.ids)
    grids = [own + given for own, given in zip(batch.noisy.grids, references, strict=True)]
    return {
        "target_tokens": sum(batch.noisy.lengths),
        "reference_tokens": sum(batch.references.lengths) if batch.references is not None else 0,
        "text_tokens": sum(batch.cond.lengths),
        "padded_tokens": denoiser.padding(grids, batch.cond.lengths),
    }


def _valid(metrics: Mapping[str, float]) -> float:
    return sum(metrics[name] for name in _VALID)


def _forward(job: TrainingJob, batch: TrainingBatch, samples: int, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)  # dropout inside the network draws from the global generator
    return flow_loss(predict_velocity(job, batch), batch, samples)


def predict_velocity(job: TrainingJob, batch: TrainingBatch) -> torch.Tensor:
    """What the denoiser predicts for a batch [N, C], in the precision of training."""
    with torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=job.config.precision == "bfloat16"):
        return job.denoiser.velocity(batch.noisy, batch.sigma, batch.cond, batch.references, forward=job.forward)


def _passes(job: TrainingJob, number: int, share: BatchShare) -> list[tuple[tuple[int, ...], bool]]:
    """Places in this process's share of batch `number` that go through the network together, and whether they count.

    On shards every process must enter the network equally often, or the others wait for it for ever. So samples go
    one by one there, and a process that has fewer repeats one that does not count.
    """
    places: tuple[int, ...] = tuple(range(len(share.indices)))
    if not job.one_by_one:
        return [(places, True)]
    world = job.processes.world
    most = max(len(job.order.batch(number, rank, world).indices) for rank in range(world))
    own: list[tuple[tuple[int, ...], bool]] = [((place,), True) for place in places]
    return own + [((0,), False)] * (most - len(places))


def _dropout_seed(job: TrainingJob, step: int, micro: int) -> int:
    """Of one forward pass. The first process draws what one process alone would."""
    rank = job.processes.rank
    return derived_seed(job.config.seed, "dropout", step, micro, *([rank] if rank else []))


def attention_kernels(device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """Inside, attention takes the kernels that are fastest for sequences of at most `tokens` picture tokens."""
    if device.type == "cpu" and tokens <= _MATH_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()
