"""Saves, finds and restores the checkpoints of a training run.

A checkpoint is a folder that appears complete or not at all. It holds the trained weights, the state of the optimizers,
the averaged weights, the step and the configuration. It holds no states of random generators and no position in the
data, because both follow from the seed and the step.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qframe.errors import ResourceError, WeightsError, bullet_list
from qframe.files.disk import disk_errors
from qframe.files.sound_folders import SoundFolders
from qframe.files.storage import is_published, publish_folder, remove_published
from qframe.files.tensor_files import write_text
from qframe.train.distributed import ALONE, Processes
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.packed_state import pack, unpack
from qframe.train.sharding import from_local, is_sharded, local_box, local_part
from qframe.train.slices import (
    INDEX,
    Groups,
    SlicedTensors,
    Written,
    index_of,
    stored_tensors,
    write_slices,
    write_whole,
)

log = logging.getLogger(__name__)

_FORMAT = "qframe-training-2"
_SLICED = "qframe-training-3"
"""The format of a checkpoint whose tensors are stored in slices; nothing else differs."""


@attrs.define(eq=False)
class TrainingState:
    """Everything that changes from step to step in a training run, and that a checkpoint saves.

    Attributes:
        parameters: The trained parameters, by name.
        optimizers: The optimizers of the parameters.
        average: The moving average of the parameters; None if the run keeps none.
        step: The number of optimizer steps that are done.
    """

    parameters: dict[str, nn.Parameter]
    optimizers: Optimizers
    average: WeightAverage | None
    step: int = 0


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in the folder `run`, whether it exists or not."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run: Path,
    state: TrainingState,
    *,
    config: str,
    about: Mapping[str, Any],
    keep: int,
    processes: Processes = ALONE,
    sound: SoundFolders | None = None,
) -> Path:
    """Save the state as a checkpoint, delete old checkpoints, and return the checkpoint's folder.

    Every process must call this function. If the state is sharded, each process writes the slices that it holds;
    otherwise the process of rank 0 writes everything. In both cases the checkpoint appears when all of it is written.
    Every file is hashed while it is written, and not read again.

    If there is a checkpoint of this step already, it is kept if it is undamaged, and else renamed before the new one is
    saved. A checkpoint is deleted when `keep` newer undamaged ones are there.

    Args:
        run: The run's folder.
        state: The state to save.
        config: The configuration of the run, as TOML.
        about: Facts about the run that are stored in the checkpoint as JSON.
        keep: The number of undamaged checkpoints to keep, with the new one.
        processes: The processes of the run.
        sound: Remembers which checkpoints need not be read to know that they are undamaged. By default all but the new
            one are read.

    Raises:
        ResourceError: The disk is full.
    """
    target, sound = checkpoint_folder(run, state.step), sound or SoundFolders()
    groups, optimizer = _content(state)
    tensors = [tensor for group in groups.values() for tensor in group.values()]
    together = processes.world > 1 and any(map(is_sharded, tensors))
    if not processes.first:
        if together and processes.agree(str):  # empty if a sound checkpoint is there already
            _write_own(Path(processes.agree(str)), groups, processes)
        return target
    there = _set_aside(target, sound)
    if together:
        processes.agree(lambda: "" if there else str(target))
    if there:
        return target
    described = {"format": _SLICED if together else _FORMAT, "step": state.step, "optimizer": optimizer, **about}
    texts = {"state.json": json.dumps(described, indent=1, sort_keys=True), "config.toml": config}
    write = partial(_write_together if together else _write_alone, groups=groups, texts=texts, processes=processes)
    publish_folder(target, write, expected_bytes=sum(tensor.nbytes for tensor in tensors))
    sound.add(target)
    _retain(run, keep, sound)
    return target


def _content(state: TrainingState) -> tuple[Groups, Any]:
    """Return the tensors of a state by group and name, and the rest of the optimizers' state as JSON."""
    moments, optimizer = pack(state.optimizers.state())
    average = {} if state.average is None else {"average": state.average.values}
    return {"weights": state.parameters, "optimizer": moments, **average}, optimizer


def _write_alone(folder: Path, groups: Groups, texts: Mapping[str, str], processes: Processes) -> dict[str, str]:
    """Write the files of a checkpoint in this process alone, and return their digests by name."""
    return write_whole(folder, groups) | {name: write_text(folder / name, text) for name, text in texts.items()}


def _write_together(folder: Path, groups: Groups, texts: Mapping[str, str], processes: Processes) -> dict[str, str]:
    """Write the files of a checkpoint together with the other processes, and return the digests of all by name."""
    processes.agree(lambda: str(folder))
    parts = _write_own(folder, groups, processes)
    texts = {**texts, INDEX: index_of(parts)}
    digests = {file: digest for part in parts for file, digest in part.digests.items()}
    return digests | {name: write_text(folder / name, text) for name, text in texts.items()}


def _write_own(folder: Path, groups: Groups, processes: Processes) -> list[Written]:
    """Write the slices that this process holds, and return what every process has written once all have.

    Raises:
        ResourceError: This process does not see the folder, which the process of rank 0 has made, or its disk is full.
    """
    if not folder.is_dir():
        raise ResourceError(
            f"{folder}: process {processes.rank} does not see this folder, in which process 0 is saving a checkpoint",
            "The machines of a sharded run need one run folder: start again with an --output that all of them share.",
        )
    with disk_errors(folder):
        own = write_slices(folder, groups, rank=processes.rank, world=processes.world)
    return [Written(**json.loads(text)) for text in processes.texts(json.dumps(attrs.asdict(own)))]


def _set_aside(target: Path, sound: SoundFolders) -> bool:
    """Whether a sound checkpoint is at `target`. A damaged one is renamed."""
    if not target.exists():
        return False
    if not sound.problems(target):
        return True
    aside = target.with_name(f"damaged-{target.name}-{secrets.token_hex(3)}")
    log.warning("%s is damaged; it is now %s", target, aside.name)
    target.rename(aside)
    return False


def _retain(run: Path, keep: int, sound: SoundFolders) -> None:
    """Delete old checkpoints. Only folders with a manifest of qframe are deleted, once `keep` newer ones are sound."""
    found = 0
    for folder in _newest_first(run):
        if found >= keep:
            if is_published(folder):
                remove_published(folder)
        elif not sound.problems(folder):
            found += 1


def _newest_first(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def find_checkpoint(run: Path, wanted: str, sound: SoundFolders | None = None) -> Path:
    """Find the checkpoint to resume from, verify its checksums, and return its folder.

    Args:
        run: The run's folder.
        wanted: "latest" for the newest undamaged checkpoint (the log names newer ones that are damaged), else the name
            or the path of a checkpoint.
        sound: Remembers which checkpoints were found undamaged, so that saving does not read them again.

    Raises:
        WeightsError: There is no checkpoint, or all are damaged, or the checkpoint that `wanted` names is damaged.
    """
    sound = sound or SoundFolders()
    if wanted != "latest":
        named = Path(wanted) if Path(wanted).is_dir() else run / "checkpoints" / wanted
        problems = sound.problems(named)
        if problems:
            raise WeightsError(f"{named}: not a sound checkpoint\n{bullet_list(problems[:5])}")
        return named
    damaged: list[str] = []
    for folder in _newest_first(run):
        problems = sound.problems(folder)
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
    """Return the content of a checkpoint's state.json: its step, and the facts about the run.

    Args:
        folder: The checkpoint.

    Raises:
        WeightsError: state.json cannot be read, or has the format of another version of qframe, or does not hold what
            that format says.
    """
    file = folder / "state.json"
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: cannot be read ({error})", _EARLIER) from error
    found = value.get("format") if isinstance(value, dict) else None
    if found not in (_FORMAT, _SLICED):
        raise WeightsError(f"{folder}: written by another version ({found}, expected {_FORMAT})")
    wrong = [name for name, is_sound in _FACTS.items() if not is_sound(value.get(name))]
    if wrong:
        raise WeightsError(f"{file}: its {', '.join(wrong)} is not what qframe writes there", _EARLIER)
    return dict(value)


_EARLIER = "Resume from an earlier checkpoint: --resume takes its name, such as step-00000100."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_made_of(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_texts, value.values())))


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "optimizer": lambda value: isinstance(value, dict),
    "processes": lambda value: value is None or (_is_count(value) and value > 0),
    "made_of": _is_made_of,
}
"""For each fact in state.json that is used here, whether a value can be it; None stands for a fact that is missing."""


def restore(folder: Path, state: TrainingState, *, changed: Collection[str] = ()) -> None:
    """Set the parameters, optimizers, average and step of `state` to exactly the values that a checkpoint saved.

    It does not matter how many processes saved the checkpoint. Of sharded parameters, only what this process holds is
    read.

    Args:
        folder: The checkpoint.
        state: The state of a run with the same parameters and optimizers.
        changed: The names of values in the optimizers' groups that the user changed, and that are not restored.

    Raises:
        WeightsError: The checkpoint does not fit the state; the message names what differs.
    """
    about = read_about(folder)
    _overwrite(folder, "weights", state.parameters)
    moments = _Moments(stored_tensors(folder, "optimizer"), state.optimizers)
    try:
        state.optimizers.load(unpack(about["optimizer"], moments), changed=changed)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"{folder}: its optimizer's state is not that of this run's optimizer ({error})") from error
    if state.average is not None:
        _overwrite(folder, "average", state.average.values)
    state.step = int(about["step"])


@torch.no_grad()
def _overwrite(folder: Path, group: str, values: Mapping[str, Tensor]) -> None:
    stored = stored_tensors(folder, group)
    _same_names(folder, stored, values)
    for name, value in values.items():
        found = stored[name].read(local_box(value))
        if found.dtype != value.dtype:  # copying would cut numbers off without a word
            raise WeightsError(f"{folder}: {name} has dtype {found.dtype} in the checkpoint, {value.dtype} in this run")
        local_part(value).copy_(found)


class _Moments(Mapping[str, Tensor]):
    """The values that a checkpoint holds for optimizers, by the names that `pack` gave them, each read when asked for.

    Values of the shape of their parameter are split over the processes as the parameter is.
    """

    def __init__(self, stored: SlicedTensors, optimizers: Optimizers) -> None:
        self._stored = stored
        self._parameters = {
            f"{number}.state.{index}": parameter
            for number, part in enumerate(optimizers.parts)
            for index, parameter in enumerate(p for group in part.param_groups for p in group["params"])
        }

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        parameter = self._parameters.get(".".join(name.split(".")[:3]))
        if parameter is None or not is_sharded(parameter) or stored.shape != tuple(parameter.shape):
            return stored.read()
        return from_local(stored.read(local_box(parameter)), parameter)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _same_names(folder: Path, saved: SlicedTensors, wanted: Mapping[str, Tensor]) -> None:
    problems = [f"{name}: not in the checkpoint" for name in wanted.keys() - saved.keys()]
    problems += [f"{name}: in the checkpoint, not in this run" for name in saved.keys() - wanted.keys()]
    problems += [
        f"{name}: {list(saved[name].shape)} in the checkpoint, {list(wanted[name].shape)} in this run"
        for name in wanted.keys() & saved.keys()
        if saved[name].shape != tuple(wanted[name].shape)
    ]
    if problems:
        raise WeightsError(f"{folder} does not fit this run:\n{bullet_list(sorted(problems)[:10])}")
