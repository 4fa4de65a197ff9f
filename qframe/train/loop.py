"""The training loop, top to bottom: batch, loss, clip, step, average, checkpoint."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import torch

from qframe.compose.culprit import ADVICE, broken_in
from qframe.config.schema import TrainConfig
from qframe.diffusion.attention import attention_kernels
from qframe.errors import NumericsError
from qframe.interfaces import PLAIN, Denoiser, Example, ForwardOptions, Schedule
from qframe.progress import Progress, Stage
from qframe.train import precision
from qframe.train.batch import LossMap, TrainingBatch, flow_loss, own_loss_map
from qframe.train.distributed import ALONE, Processes, may_have_lost_process
from qframe.train.order import BatchOrder
from qframe.train.passes import COUNTED, TrainingPass, training_passes
from qframe.train.prefetch import made_ahead
from qframe.train.readings import Reading, StepResult, read, valid_tokens
from qframe.train.sharding import gathered
from qframe.train.signals import STOP_SIGNALS, Stopped, StopSignals
from qframe.train.state import TrainingState

log = logging.getLogger(__name__)

_SMOOTHED_OVER = 20
"""About how many steps the loss that is shown is averaged over."""


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
        observe: Called for every step with its number (from 1) and its metrics, in order, when they are read. After a
            validation it is called once more for the same step, with the metrics that `validate` returned, if any.
        save: Publishes a checkpoint of the state as it stands. Every step up to it has been observed and checked.
        validate: Called with the number of a step for which `validation_due` is true; returns further metrics. The step
            is observed and saved before the call. There is no call where the run was asked to stop.
        validation_due: Whether `validate` is to be called after the step of this number.
        keep: Called with the number of a step for which `keep_due` is true, when it was observed and checked.
        keep_due: Whether `keep` is to be called after the step of this number.
        processes: The processes that make every step together, each with its portion of the batch. All of them call
            `save` and `observe`.
        one_by_one: Every forward pass has one sample, and all processes make equally many passes: sharding needs it.
        ahead: How many batches a thread makes ahead. It must be 0 if reading an example computes on the device.
        log_every: After how many steps their metrics are read from the device, and passed to `observe` in order.
        peak: The operations that the devices of all processes can do in a second; None if they were not measured.
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
    keep: Callable[[int], object] = lambda step: None
    keep_due: Callable[[int], bool] = lambda step: False
    processes: Processes = ALONE
    one_by_one: bool = False
    ahead: int = 2
    log_every: int = 1
    peak: float | None = None


def run_steps(setup: StepSetup, state: TrainingState) -> int:
    """Train from `state.step` to `config.max_steps`.

    One process looks for signals between the batches of a step, since a step may take minutes; a step that a signal
    interrupts changes nothing, and a resumed run makes it with the same numbers. Several processes ask each other once
    in a step, and stop after it.

    Loss and gradient norm are read from the device every `log_every` steps, and before a checkpoint, a validation and
    the end of the run. Until then the device computes without being waited for. No checkpoint is saved, and no
    validation made, before all steps were read, passed to `observe`, and found to be finite often enough. So a process
    that is killed while it saves or validates has lost the metrics of no step.

    Returns:
        The signal that came to any process too late to stop a step, whose effect is left to the caller; 0 if none came.

    Raises:
        Stopped: A signal came before the last step, and the state is saved.
        NumericsError: The loss or its gradient was not finite in more than `train.nan_patience` steps in a row.
    """
    config = setup.config
    setup.denoiser.module.train()
    with (
        StopSignals() as signals,
        setup.progress.stage("training", config.max_steps, done=state.step) as bar,
        made_ahead(training_passes(setup, state.step), setup.ahead) as passes,
        _Observer(setup, bar).finishing() as observer,
    ):
        while state.step < config.max_steps:
            result = optimizer_step(setup, state, passes, signals)
            if result is None:
                observer.read()
                setup.save()
                raise _stopped(signals.received or 0, state)
            state.step += 1
            observer.unread.append(result)
            keeps = setup.keep_due(state.step)
            ends = state.step == config.max_steps or state.step % config.checkpoint_every == 0
            due = setup.validation_due(state.step)
            if result.asked or due or keeps or ends or state.step % setup.log_every == 0:
                observer.read()
            if keeps:
                setup.keep(state.step)
            asked = result.asked
            if setup.processes.world == 1:
                asked = asked or signals.received or 0
            if asked or due or ends:
                observer.read()
                setup.save()  # before a validation too, so that a signal may end at once what takes minutes
            if due and not asked:
                with signals.paused():
                    found = setup.validate(state.step)
                observer.validation = found.get("val_loss", observer.validation)
                if found:
                    setup.observe(state.step, found)
            if asked and state.step < config.max_steps:
                raise _stopped(asked, state)
    return _asked(setup.processes.total([signals.received == number for number in STOP_SIGNALS]))


def _asked(received: Sequence[float]) -> int:
    """The signal to obey, given how many processes received each of `STOP_SIGNALS`; 0 if none did."""
    return max((int(number) for number, count in zip(STOP_SIGNALS, received, strict=True) if count), default=0)


def _stopped(asked: int, state: TrainingState) -> Stopped:
    return Stopped(asked, f"stopped at step {state.step}; everything is saved", "Continue with --resume.")


@attrs.define(eq=False)
class _Observer:
    """Reads the metrics of steps from the device, passes them on, and ends the run after too many bad steps.

    Attributes:
        setup: What the steps need.
        bar: Shows how far the run is.
        unread: The steps whose metrics were not passed on yet, in order.
        bad_steps: How many steps in a row were not finite.
        smoothed: The loss that is shown: the mean of the first steps, and then a moving average.
        finite_steps: How many steps of this session were finite.
        validation: The newest validation loss of this session; None before the first one.
    """

    setup: StepSetup
    bar: Stage
    unread: list[StepResult] = attrs.field(factory=list)
    bad_steps: int = 0
    smoothed: float = 0.0
    finite_steps: int = 0
    validation: float | None = None

    @contextlib.contextmanager
    def finishing(self) -> Iterator[_Observer]:
        """A context that passes on what was not read yet, even if an error is raised inside, whose cause may be it.

        Where another process may have ended, nothing is read: the device may wait for ever for what that process was
        to send. The steps that are not passed on then are made again when the run is resumed.
        """
        try:
            yield self
        except BaseException as error:
            if self.setup.processes.world == 1 or not may_have_lost_process(error):
                with contextlib.suppress(Exception):  # the error that is raised already says what is wrong
                    for reading in read(self.unread, self.setup.peak):
                        self._tell(reading)
            raise

    def read(self) -> None:
        """Read the metrics of all steps that were not read, and pass them on.

        Raises:
            NumericsError: More than `train.nan_patience` steps in a row were not finite.
        """
        for reading in read(self.unread, self.setup.peak):
            self._tell(reading)
            self._check(reading)

    def _tell(self, reading: Reading) -> None:
        del self.unread[0]
        metrics = reading.metrics
        if reading.finite:
            self.finite_steps += 1
            self.smoothed += (metrics["loss"] - self.smoothed) / min(self.finite_steps, _SMOOTHED_OVER)
        shown: dict[str, float] = {"loss": self.smoothed, "lr": metrics["learning_rate"]}
        if self.validation is not None:
            shown["val_loss"] = self.validation
        more = {"tokens/s": round(metrics["tokens_per_second"]), "padded": int(metrics["padded_tokens"])}
        self.bar.advance(1, **shown, tokens=int(valid_tokens(metrics)), **more)
        self.setup.observe(reading.step, metrics)

    def _check(self, reading: Reading) -> None:
        if reading.finite:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        ids = "\n".join(self.setup.processes.texts("\n".join(reading.ids))).split("\n")
        if self.setup.processes.first:
            loss, norm = reading.metrics["loss"], reading.metrics["gradient_norm"]
            log.warning("step %d skipped: loss %s, gradient norm %s, examples %s", reading.step, loss, norm, ids[:8])
        if self.bad_steps > self.setup.config.nan_patience:
            broken = broken_in("denoiser", self.setup.denoiser.module)
            if broken is not None:
                raise NumericsError(f"the loss was not finite in step {reading.step}: {broken}", ADVICE)
            raise NumericsError(
                f"the loss or its gradient was not finite in {self.bad_steps} steps in a row, up to step "
                f"{reading.step}; examples of the last one: {', '.join(ids[:8])}",
                "Check these examples, or start a new run with a lower train.learning_rate: resumed, this one "
                "would take the same steps again.",
            )


def optimizer_step(
    setup: StepSetup, state: TrainingState, passes: Iterator[TrainingPass], signals: StopSignals
) -> StepResult | None:
    """Make one optimizer step from the passes of `gradient_accumulation` batches, without waiting for the device.

    The weights stay as they are if the loss or the gradient is not finite. Where the optimizers can, the device decides
    that; where they cannot, the CPU waits for the device once. Returns None if a signal came before the last batch of
    the only process; then nothing has changed.
    """
    started = time.monotonic()
    config, processes = setup.config, setup.processes
    made = _backward(setup, passes, signals)
    if made is None:
        state.optimizers.zero_grad()
        return None
    parameters = list(state.parameters.values())
    counts = [
        *(made.counted[name] for name in COUNTED),
        *(signals.received == number for number in STOP_SIGNALS),
        *(parameter.grad is not None for parameter in parameters),
    ]
    totals = iter(processes.total(counts))  # one exchange of the step's numbers
    counted = {name: int(next(totals)) for name in COUNTED}
    received = [next(totals) for _ in STOP_SIGNALS]
    loss = processes.total_on_device(torch.stack(made.losses).sum())
    processes.sum_gradients(parameters, used=list(totals))
    norm = gathered(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
    finite = loss.isfinite() & norm.isfinite()
    rate = 0.0
    if state.optimizers.skip_on_device:
        rate = state.optimizers.step(state.step, steps=config.max_steps, skip=~finite)
        if state.average is not None:
            state.average.update(state.parameters, state.step, skip=~finite)
    elif finite.item():
        rate = state.optimizers.step(state.step, steps=config.max_steps)
        if state.average is not None:
            state.average.update(state.parameters, state.step)
    state.optimizers.zero_grad()
    return StepResult(
        step=state.step + 1,
        loss=loss,
        norm=norm,
        rate=rate,
        seconds=time.monotonic() - started,
        samples=made.samples,
        counted=counted,
        ids=made.ids,
        asked=_asked(received),
    )


@attrs.define(eq=False)
class _Passes:
    """The results of the forward and backward passes of one optimizer step, in this process.

    Attributes:
        samples: How many samples the step has, over all processes.
        losses: The loss of each pass that counts; they add up to this process's part of the step's loss.
        counted: How many tokens of each kind and how many operations were computed.
        ids: The ids of the examples.
    """

    samples: int = 0
    losses: list[torch.Tensor] = attrs.field(factory=list)
    counted: Counter[str] = attrs.field(factory=Counter)
    ids: list[str] = attrs.field(factory=list)


def _backward(setup: StepSetup, passes: Iterator[TrainingPass], signals: StopSignals) -> _Passes | None:
    """Accumulate the gradients of one optimizer step. None if a signal came before the last batch of one process."""
    made = _Passes()
    for one in passes:
        if one.interruptible and setup.processes.world == 1 and signals.received:
            return None
        batch = one.batch.to(setup.device)
        # Backward too: gradient checkpointing runs the forward pass again there, and must get the same kernels.
        with attention_kernels(setup.device, max(batch.noisy.lengths)):
            loss = _forward(setup, batch, one.samples, seed=one.seed)
            (loss if one.counts else loss * 0.0).backward()
        made.samples = one.samples
        if one.counts:
            made.losses.append(loss.detach())
            made.counted.update(one.counted)
            made.ids += batch.ids
        if one.last:
            break
    return made


def _forward(setup: StepSetup, batch: TrainingBatch, samples: int, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)  # dropout inside the network draws from the global generator
    return flow_loss(predict_velocity(setup, batch), batch, samples)


def predict_velocity(setup: StepSetup, batch: TrainingBatch) -> torch.Tensor:
    """The velocity [N, C] that the denoiser predicts for a batch, in the precision of training."""
    with precision.in_precision(setup.device, setup.config)():
        return setup.denoiser.velocity(batch.noisy, batch.sigma, batch.cond, batch.references, forward=setup.forward)
