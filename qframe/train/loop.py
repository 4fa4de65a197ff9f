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
from qframe.train import precision
from qframe.train.batch import LossMap, TrainingBatch, flow_loss, make_batch, own_loss_map
from qframe.train.distributed import ALONE, Processes
from qframe.train.order import BatchOrder, BatchPortion, step_batches
from qframe.train.sharding import gathered
from qframe.train.signals import Stopped, StopSignals
from qframe.train.state import TrainingState
from qframe.train.streams import derived_seed

log = logging.getLogger(__name__)

_MATH_ATTENTION_TOKENS = 1024
"""On a CPU the backward pass of fused attention is slower than plain matrix products up to about here."""

_VALID = ("target_tokens", "reference_tokens", "text_tokens")
_COUNTED = (*_VALID, "padded_tokens")


@attrs.frozen(eq=False, kw_only=True)
class StepSetup:
    """What the steps of a run need, and what does not change from one step to the next.

    Attributes:
        config: The settings of `[train]`.
        denoiser: The denoiser that is trained.
        schedule: Shifts noise levels, if `train.timestep_density` asks for it.
        patch: The side of a patch that becomes one token, in latent cells.
        forward: Options that every forward pass is given in addition to its batch.
        loss_map: Says where the loss of an example counts.
        examples: The examples to train on.
        order: Which examples make which batch.
        device: Where the denoiser computes.
        progress: Shows how far the run is.
        observe: Called after every step with its number (from 1) and its metrics.
        save: Publishes a checkpoint of the state as it stands.
        validate: Called with the number of a step for which `validation_due` is true; returns further metrics. The step
            is saved before the call and observed after it. There is no call where the run was asked to stop.
        validation_due: Whether `validate` is to be called after the step of this number.
        processes: The processes that make every step together, each with its portion of the batch. All of them call
            `save` and `observe`.
        one_by_one: Every forward pass has one sample, and all processes make equally many passes: sharding needs it.
    """

    config: TrainConfig
    denoiser: Denoiser
    schedule: Schedule
    patch: int
    forward: ForwardOptions = PLAIN
    loss_map: LossMap = own_loss_map
    examples: Sequence[Example]
    order: BatchOrder
    device: torch.device
    progress: Progress
    observe: Callable[[int, Mapping[str, float]], None]
    save: Callable[[], object]
    validate: Callable[[int], Mapping[str, float]] = lambda step: {}
    validation_due: Callable[[int], bool] = lambda step: False
    processes: Processes = ALONE
    one_by_one: bool = False


def run_steps(setup: StepSetup, state: TrainingState) -> None:
    """Train from `state.step` to `config.max_steps`.

    Signals are looked for between the batches of a step, since a step may take minutes. A step that a signal interrupts
    changes nothing, and a resumed run makes it with the same numbers.

    Raises:
        Stopped: A signal came, and the state is saved.
        NumericsError: The loss or its gradient was not finite in more than `train.nan_patience` steps in a row.
    """
    config = setup.config
    bad_steps = 0
    setup.denoiser.module.train()
    with StopSignals() as signals, setup.progress.stage("training", config.max_steps, done=state.step) as bar:

        def asked_to_stop() -> int:
            return setup.processes.most(signals.received or 0)  # the signal may not have reached every process yet

        while state.step < config.max_steps:
            taken = optimizer_step(setup, state, asked_to_stop)
            if taken is None:
                setup.save()
                raise _stopped(asked_to_stop(), state)
            metrics, ids = taken
            state.step += 1
            bar.advance(1, loss=metrics["loss"], tokens=_valid(metrics), padded=metrics["padded_tokens"])
            asked, saved, found = asked_to_stop(), False, dict[str, float]()
            try:
                if setup.validation_due(state.step) and not asked:
                    setup.save()  # so that a signal may end at once what takes minutes
                    saved = True
                    with signals.paused():
                        found.update(setup.validate(state.step))
            finally:
                setup.observe(state.step, {**metrics, **found})
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
                setup.save()
            if asked and state.step < config.max_steps:
                raise _stopped(asked, state)


def _stopped(asked: int, state: TrainingState) -> Stopped:
    return Stopped(asked, f"stopped at step {state.step}; everything is saved", "Continue with --resume.")


def optimizer_step(
    setup: StepSetup, state: TrainingState, asked_to_stop: Callable[[], int]
) -> tuple[dict[str, float], list[str]] | None:
    """Make one optimizer step from `gradient_accumulation` batches. Returns its metrics and the ids of its examples.

    The weights stay as they are if the loss or the gradient is not finite; the metric `skipped` is 1 then. Returns None
    if `asked_to_stop` gave a signal's number before the last batch; then nothing has changed.
    """
    started = time.monotonic()
    config, processes = setup.config, setup.processes
    passes = _backward(setup, state, asked_to_stop)
    if passes is None:
        state.optimizers.zero_grad()
        return None
    loss, ids = torch.stack(passes.losses).sum().item(), passes.ids
    total, *counted = processes.total([loss, *(passes.tokens[name] for name in _COUNTED)])
    parameters = list(state.parameters.values())
    processes.sum_gradients(parameters)
    norm = gathered(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)).item()
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
        "samples": passes.samples,
        **dict(zip(_COUNTED, map(int, counted), strict=True)),
    }
    return metrics, ids


@attrs.define(eq=False)
class _Passes:
    """The results of the forward and backward passes of one optimizer step, in this process.

    Attributes:
        samples: How many samples the step has, over all processes.
        losses: The loss of each pass that counts; they add up to this process's part of the step's loss.
        tokens: How many tokens of each kind were computed.
        ids: The ids of the examples.
    """

    samples: int
    losses: list[torch.Tensor] = attrs.field(factory=list)
    tokens: Counter[str] = attrs.field(factory=Counter)
    ids: list[str] = attrs.field(factory=list)


def _backward(setup: StepSetup, state: TrainingState, asked_to_stop: Callable[[], int]) -> _Passes | None:
    """Accumulate the gradients of one optimizer step. None if a signal came before the last batch."""
    rank, world = setup.processes.rank, setup.processes.world
    numbers = step_batches(setup.order, setup.config, state.step, world)
    portions = [setup.order.batch(number, rank, world) for number in numbers]
    made = _Passes(sum(portion.samples for portion in portions))
    before = 0  # samples of the step in earlier batches
    passes = 0
    for micro, portion in enumerate(portions):
        if micro and asked_to_stop():
            return None
        for places, counts in _passes(setup, numbers[micro], portion):
            batch = make_batch(
                [setup.examples[portion.indices[place]] for place in places],
                [before + portion.slots[place] for place in places],
                step=state.step,
                config=setup.config,
                schedule=setup.schedule,
                patch=setup.patch,
                device=setup.device,
                loss_map=setup.loss_map,
            )
            # Backward too: gradient checkpointing runs the forward pass again there, and must get the same kernels.
            with attention_kernels(setup.device, max(batch.noisy.lengths)):
                loss = _forward(setup, batch, made.samples, seed=_dropout_seed(setup, state.step, passes))
                (loss if counts else loss * 0.0).backward()
            passes += 1
            if counts:
                made.losses.append(loss.detach())
                made.tokens.update(_count(batch, setup.denoiser))
                made.ids += batch.ids
        before += portion.samples
    return made


def _count(batch: TrainingBatch, denoiser: Denoiser) -> dict[str, int]:
    """How many tokens of each kind a forward pass computes. Padded tokens belong to no sample."""
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


def _forward(setup: StepSetup, batch: TrainingBatch, samples: int, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)  # dropout inside the network draws from the global generator
    return flow_loss(predict_velocity(setup, batch), batch, samples)


def predict_velocity(setup: StepSetup, batch: TrainingBatch) -> torch.Tensor:
    """The velocity [N, C] that the denoiser predicts for a batch, in the precision of training."""
    with precision.in_precision(setup.device, setup.config)():
        return setup.denoiser.velocity(batch.noisy, batch.sigma, batch.cond, batch.references, forward=setup.forward)


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


def _dropout_seed(setup: StepSetup, step: int, micro: int) -> int:
    """The seed of dropout in one forward pass. The first process draws what a run of one process would draw."""
    rank = setup.processes.rank
    return derived_seed(setup.config.seed, "dropout", step, micro, *([rank] if rank else []))


def attention_kernels(device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """A context in which attention uses the kernels that are fastest for samples of at most `tokens` picture tokens."""
    if device.type == "cpu" and tokens <= _MATH_ATTENTION_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()
