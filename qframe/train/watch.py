"""Logs metrics, computes validation losses, samples pictures and saves checkpoints between the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from qframe.files.sound_folders import SoundFolders
from qframe.interfaces import Example
from qframe.train.held_out import held_out_losses
from qframe.train.kept import keep_best, keep_step
from qframe.train.loop import StepSetup
from qframe.train.run import Run
from qframe.train.state import TrainingState, save_checkpoint

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer


@attrs.define(eq=False, kw_only=True)
class Watch:
    """The object whose methods the training loop calls between steps, through the fields of `StepSetup`.

    Attributes:
        trainer: The trainer whose weights the steps change.
        run: The run, to whose folder the metrics are written.
        state: The training state that checkpoints save.
        max_steps: The number of optimizer steps of the whole run.
        held_out: The examples that the validation loss is computed over; None computes no validation loss.
        sample: Samples the validation pictures and saves them under the name it is called with, such as "step-000100";
            None samples nothing during training.
        about: Facts about the run that every checkpoint stores as JSON.
        toml: The run's configuration as TOML, which every checkpoint stores.
        sound: Remembers which checkpoints are undamaged, so that they are not read at every save.
        setup: The setup of the steps. It must be set before the first method is called.
    """

    trainer: Trainer
    run: Run
    state: TrainingState
    max_steps: int
    held_out: Sequence[Example] | None
    sample: Callable[[str], None] | None
    about: Mapping[str, Any]
    toml: str
    sound: SoundFolders = attrs.field(factory=SoundFolders)
    setup: StepSetup = attrs.field(init=False)

    def due(self, step: int) -> bool:
        """Whether the validation loss or the samples are due after this step, so that `validate` must be called."""
        return self._loss_due(step) or self._samples_due(step)

    def validate(self, step: int) -> Mapping[str, float]:
        """Compute the validation losses and sample pictures, each if it is due after this step.

        Returns:
            The validation losses by name; empty if they are not due.
        """
        found: Mapping[str, float] = {}
        if self.held_out is not None and self._loss_due(step):
            with self.trainer.averaged():
                found = held_out_losses(self.setup, self.held_out)
            train, first = self.trainer.config.train, self.trainer.processes.first
            if train.keep_best and step > 0 and first:
                keep_best(self.trainer, self.run.folder, step, found["val_loss"])
        if self.sample is not None and self._samples_due(step):
            self.sample(f"step-{step:06d}")
            self.setup.denoiser.module.train()
        return found

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, and call the plugins that observe the run, in the process of rank 0 alone."""
        self.run.step = step
        if self.trainer.processes.first:
            self.run.log(step, metrics)
            self.trainer.registry.tell("qframe_step_end", run=self.run, step=step, metrics=metrics)

    def keep_due(self, step: int) -> bool:
        """Whether the LoRA of this step is to be kept, so that `keep` must be called."""
        every = self.trainer.config.train.keep_every
        return every is not None and step % every == 0

    def keep(self, step: int) -> None:
        """Keep the LoRA of this step. The process of rank 0 alone writes."""
        if self.trainer.processes.first:
            keep_step(self.trainer, self.run.folder, step)

    def save(self) -> None:
        """Save a checkpoint of the present state. Every process must call this method, and waits until it is saved."""
        processes = self.trainer.processes
        save_checkpoint(
            self.run.folder,
            self.state,
            config=self.toml,
            about=self.about,
            keep=self.trainer.config.train.keep_checkpoints,
            processes=processes,
            sound=self.sound,
        )
        processes.meet()

    def _loss_due(self, step: int) -> bool:
        every = self.trainer.config.validation.every
        return self.held_out is not None and every is not None and (step % every == 0 or step == self.max_steps)

    def _samples_due(self, step: int) -> bool:
        every = self.trainer.config.sample.every
        return self.sample is not None and every is not None and 0 < step < self.max_steps and step % every == 0
