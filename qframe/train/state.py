"""A run's saved state: folders that appear whole or not at all, and are found again or refused by name.

A checkpoint holds the trained weights, the optimizers' moments, the averaged weights, the step and the
configuration. It holds no random states and no place in the data: both are functions of (seed, step).
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qframe.errors import WeightsError, bullet_list
from qframe.files.storage import is_published, publish_folder, remove_published, verify_folder
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.packed_state import pack, unpack
from qframe.train.sharding import full_on_cpu, sharded_like

log = logging.getLogger(__name__)

_FORMAT = "qframe-training-2"


@attrs.define(eq=False)
class TrainingState:
    """What changes while a run goes on, and what a checkpoint saves.

    Attributes:
        parameters: The trained parameters, by name.
        optimizers: The optimizers that step the parameters.
        average: The moving average of the parameters; None if the run keeps none.
        step: How many optimizer steps are done.
    """

    parameters: dict[str, nn.Parameter]
    optimizers: Optimizers
    average: WeightAverage | None
    step: int = 0


def checkpoint_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run: Path, state: TrainingState, *, config: str, about: Mapping[str, Any], keep: int, writes: bool = True
) -> Path:
    """Publish the state as a checkpoint, and delete all sound checkpoints but the newest. Returns its folder.

    If there is a sound checkpoint of this step already, it is left as it is; a damaged one is renamed.

    Args:
        run: The run's folder.
        state: What is saved.
        config: The configuration of the run, as TOML.
        about: What the checkpoint tells of the run, as JSON.
        keep: How many sound checkpoints to keep.
        writes: False in processes that write nothing, and only help gathering sharded tensors.
    """
    target = checkpoint_folder(run, state.step)
    weights = full_on_cpu(state.parameters, keep=writes)
    moments, optimizer = pack(state.optimizers.state(), keep=writes)
    average = {} if state.average is None else full_on_cpu(state.average.values, keep=writes)
    if not writes:
        return target
    if target.exists():
        if not verify_folder(target):
            return target
        aside = target.with_name(f"damaged-{target.name}-{secrets.token_hex(3)}")
        log.warning("%s is damaged; it is now %s", target, aside.name)
        target.rename(aside)
    expected = sum(t.nbytes for part in (weights, moments, average) for t in part.values())

    def write(folder: Path) -> None:
        save_file(weights, folder / "weights.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        if average:
            save_file(average, folder / "average.safetensors")
        description = {"format": _FORMAT, "step": state.step, "optimizer": optimizer, **about}
        (folder / "state.json").write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")
        (folder / "config.toml").write_text(config, encoding="utf-8")

    publish_folder(target, write, expected_bytes=expected)
    _retain(run, keep)
    return target


def _retain(run: Path, keep: int) -> None:
    """Delete old checkpoints. Only folders with a manifest of qframe are deleted, once `keep` newer ones are sound."""
    sound = 0
    for folder in _newest_first(run):
        if sound >= keep:
            if is_published(folder):
                remove_published(folder)
        elif not verify_folder(folder):
            sound += 1


def _newest_first(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def find_checkpoint(run: Path, wanted: str) -> Path:
    """The checkpoint to resume from: the newest sound one if `wanted` is "latest", else the one of that name or path.

    Damaged checkpoints that are newer are named in the log. WeightsError if there is no checkpoint, if all are damaged,
    or if the one that was named is damaged.
    """
    if wanted != "latest":
        named = Path(wanted) if Path(wanted).is_dir() else run / "checkpoints" / wanted
        problems = verify_folder(named)
        if problems:
            raise WeightsError(f"{named}: not a sound checkpoint\n{bullet_list(problems[:5])}")
        return named
    damaged: list[str] = []
    for folder in _newest_first(run):
        problems = verify_folder(folder)
        if not problems:
            for line in damaged:
                log.warning("passed over a damaged checkpoint: %s", line)
            return folder
        damaged += problems[:1]
    if damaged:
        raise WeightsError(
            f"{run}: every checkpoint is damaged\n{bullet_list(damaged)}",
            "Start again into another output folder; nothing was changed here.",
        )
    raise WeightsError(
        f"{run}: there is no checkpoint to resume from",
        "If a run stopped here before its first one, remove the folder; then start without --resume.",
    )


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON that `save_checkpoint` wrote about the run. WeightsError if another version of qframe wrote it."""
    value: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if value.get("format") != _FORMAT:
        raise WeightsError(f"{folder}: written by another version ({value.get('format')}, expected {_FORMAT})")
    return value


def restore(folder: Path, state: TrainingState) -> None:
    """Set `state` to what it was when the checkpoint was saved, bit for bit. WeightsError names what does not fit."""
    about = read_about(folder)
    weights = _tensors(folder / "weights.safetensors")
    _same_names(folder, weights, state.parameters)
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(sharded_like(weights[name], parameter))
    moments = _tensors(folder / "optimizer.safetensors")
    try:
        state.optimizers.load(unpack(about["optimizer"], moments))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WeightsError(f"{folder}: its optimizer's state is not that of this run's optimizer ({error})") from error
    if state.average is not None:
        average = _tensors(folder / "average.safetensors")
        _same_names(folder, average, state.average.values)
        for name, value in state.average.values.items():
            value.copy_(sharded_like(average[name], value))
    state.step = int(about["step"])


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise WeightsError(
            f"{file}: not in this checkpoint", "The run was started with other settings; see its config.toml."
        ) from error


def _same_names(folder: Path, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = [f"{name}: not in the checkpoint" for name in wanted.keys() - saved.keys()]
    problems += [f"{name}: in the checkpoint, not in this run" for name in saved.keys() - wanted.keys()]
    problems += [
        f"{name}: {list(saved[name].shape)} in the checkpoint, {list(wanted[name].shape)} in this run"
        for name in wanted.keys() & saved.keys()
        if saved[name].shape != wanted[name].shape
    ]
    if problems:
        raise WeightsError(f"{folder} does not fit this run:\n{bullet_list(sorted(problems)[:10])}")
