"""Writes the results of a training run: the LoRA, or the fine-tuned denoiser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch

from qframe.config.schema import Precision
from qframe.files.storage import is_published, publish_folder, remove_published
from qframe.interfaces import Denoiser
from qframe.train.sharding import load_full
from qframe.train.state import TrainingState
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
    about = {"weights_licence": trainer.composition.licence, "base_model": trainer.composition.model_name}

    def write(into: Path) -> None:
        denoiser.save(into)
        (into / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    if first and is_published(target):  # of an earlier end of this run; the checkpoints hold those weights too
        remove_published(target)
    with trainer.averaged():
        denoiser = _gathered(trainer) if trainer.sharded else trainer.denoiser
        if first:
            with _rounded(denoiser.module, trainer.config.train.save_dtype):
                publish_folder(target, write)
    return target


def _gathered(trainer: Trainer) -> Denoiser:
    """The fine-tuned denoiser with all of its weights on the CPU of the first process.

    The other processes only take part in gathering, and get their sharded denoiser back.
    """
    assert trainer.state is not None  # it was trained
    first = trainer.processes.first
    denoiser = trainer.composition.load("denoiser", offloaded=True).denoiser if first else trainer.denoiser
    trainer.processes.meet()  # loading takes longer than collectives wait
    load_full(denoiser.module.float() if first else denoiser.module, trainer.state.parameters, keep=first)
    return denoiser


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


@contextlib.contextmanager
def _rounded(module: torch.nn.Module, dtype: Precision) -> Iterator[None]:
    """A context in which the module's parameters have this dtype. Afterwards they are restored to the bit."""
    kept = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, values in kept:
            parameter.data = values.to(getattr(torch, dtype))
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values
