"""Writes the results of a training run: the LoRA, or the fine-tuned denoiser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch

from qframe import adapters
from qframe.files.storage import is_published, publish_folder, remove_published
from qframe.interfaces import SavedAs
from qframe.train.slices import stored_tensors
from qframe.train.state import TrainingState, checkpoint_folder
from qframe.train.validation import GroupResult

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer


@attrs.frozen(eq=False, kw_only=True)
class FitResult:
    """The results of a training run.

    Attributes:
        folder: The run's folder.
        weights: The LoRA file, or the folder of the fine-tuned denoiser.
        sheet: The contact sheet that shows the samples before and after training side by side. It is None if nothing
            was sampled, and in every process but the one of rank 0.
        before: For each group of records, how many samples were right before training.
        after: For each group of records, how many samples were right after training.
    """

    folder: Path
    weights: Path
    sheet: Path | None
    before: Sequence[GroupResult]
    after: Sequence[GroupResult]


def save_result(trainer: Trainer, folder: Path) -> Path:
    """Write the trained weights into a run's folder, and return the path of the LoRA file or of the denoiser's folder.

    If the run keeps a moving average of the weights, the average is written. Every process must call this function; the
    process of rank 0 alone writes.
    """
    lora = trainer.config.train.mode == "lora"
    target = folder / ("lora.safetensors" if lora else "denoiser")
    first = trainer.processes.first
    if lora:
        return trainer.save_lora(target) if first else target
    if not first:
        return target
    assert trainer.state is not None  # it was trained
    about = {"weights_licence": trainer.composition.licence, "base_model": trainer.composition.model_name}
    values = trained_values(trainer, folder)
    dtype = getattr(torch, trainer.config.train.save_dtype)

    def write(into: Path) -> None:
        trainer.denoiser.save(into, SavedAs(dtype, lambda name: values(name).to(dtype)))
        (into / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    if is_published(target):  # of an earlier end of this run; the checkpoints hold those weights too
        remove_published(target)
    publish_folder(target, write)
    return target


def write_lora(trainer: Trainer, file: Path, about: Mapping[str, str]) -> Path:
    """Write the LoRA in training, or its moving average, with more metadata `about` it, and return the file."""
    with trainer.averaged():
        composition = trainer.composition
        metadata = {"weights_licence": composition.licence, "base_model": composition.model_name, **about}
        adapters.save_lora(file, adapters.lora_layers(trainer.denoiser.module), metadata=metadata)
    return file


def trained_values(trainer: Trainer, folder: Path) -> Callable[[str], torch.Tensor]:
    """Return a function from a parameter's name to its trained value, or to its moving average if the run keeps one.

    If the denoiser is sharded, no process holds all values, and the function reads them from the checkpoint of the last
    step, which the run saves before its results.

    Args:
        trainer: The trainer, whose weights are trained.
        folder: The run's folder.
    """
    state = trainer.state
    assert state is not None  # it was trained
    averaged = state.average is not None and state.step > 0
    if trainer.sharded:
        stored = stored_tensors(checkpoint_folder(folder, state.step), "average" if averaged else "weights")
        return lambda name: stored[name].read()
    held = state.average.values if averaged and state.average is not None else state.parameters
    return lambda name: held[name].detach()


@contextlib.contextmanager
def averaged(state: TrainingState | None) -> Iterator[None]:
    """A context in which the trained weights are replaced by their moving average; they are restored afterwards.

    If `state` is None or at step 0, or if the run keeps no average, the weights are not changed.
    """
    if state is None or state.average is None or state.step == 0:
        yield
        return
    kept = {name: parameter.detach().clone() for name, parameter in state.parameters.items()}
    try:
        _overwrite(state.parameters, state.average.values)
        yield
    finally:
        _overwrite(state.parameters, kept)


def _overwrite(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
