"""Watches a training run from step to step: metrics, validation losses, samples and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from qframe.interfaces import Example
from qframe.train.held_out import held_out_losses
from qframe.train.loop import StepSetup
from qframe.train.run import Run
from qframe.train.state import TrainingState, save_checkpoint

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer


@attrs.define(eq=False, kw_only=True)
class Watch:
    """What happens beside the steps of a run. The training loop calls its methods; `StepSetup` says when.

    Attributes:
        trainer: The trainer whose weights the steps change.
        run: The run, which keeps the metrics.
        state: What the checkpoints save.
        max_steps: Optimizer steps of the whole run.
        held_out: The examples that the validation loss is taken over; None takes no loss.
        sample: Samples the validation pictures and keeps them under the name of a moment; None samples nothing.
        about: What every checkpoint tells of the run.
        toml: The run's configuration, which every checkpoint holds.
        setup: The steps that are watched. It is set before the first step.
    """

    trainer: Trainer
    run: Run
    state: TrainingState
    max_steps: int
    held_out: Sequence[Example] | None
    sample: Callable[[str], None] | None
    about: Mapping[str, Any]
    toml: str
    setup: StepSetup = attrs.field(init=False)

    def due(self, step: int) -> bool:
        """Whether `validate` has something to do after this step."""
        return self._loss_due(step) or self._samples_due(step)

    def validate(self, step: int) -> Mapping[str, float]:
        """Take the validation loss and sample pictures, each if it is due after this step. Returns the losses."""
        found: Mapping[str, float] = {}
        if self.held_out is not None and self._loss_due(step):
            with self.trainer.averaged():
                found = held_out_losses(self.setup, self.held_out)
        if self.sample is not None and self._samples_due(step):
            self.sample(f"step-{step:06d}")
            self.setup.denoiser.module.train()
        return found

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, and tell the plugins that observe the run. The first process alone does."""
        self.run.step = step
        if self.trainer.processes.first:
            self.run.log(step, metrics)
            self.trainer.registry.tell("qframe_step_end", run=self.run, step=step, metrics=metrics)

    def save(self) -> None:
        """Publish a checkpoint of the state as it stands, and wait until it is there."""
        processes, keep = self.trainer.processes, self.trainer.config.train.keep_checkpoints
        first = processes.first
        if first or self.trainer.sharded:
            save_checkpoint(self.run.folder, self.state, config=self.toml, about=self.about, keep=keep, writes=first)
        processes.meet()

    def _loss_due(self, step: int) -> bool:
        every = self.trainer.config.validation.every
        return self.held_out is not None and every is not None and (step % every == 0 or step == self.max_steps)

    def _samples_due(self, step: int) -> bool:
        every = self.trainer.config.sample.every
        return self.sample is not None and every is not None and 0 < step < self.max_steps and step % every == 0
