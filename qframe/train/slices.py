"""The tensors of a checkpoint in safetensors files: in one file, or in slices that several processes wrote.

Each process of a sharded run writes the slices of tensors that it holds into files of its own, and the process of rank
0 writes one JSON index over all of them. A reader puts together any part of a tensor from the slices that overlap with
it, so that any number of processes can read what any other number wrote, and none needs memory for a whole tensor that
it holds only a part of. docs/guides/resume-and-checkpoints.md describes the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qframe.errors import WeightsError
from qframe.files.tensor_files import write_tensors
from qframe.train.sharding import Box, is_sharded, local_box, local_part

INDEX = "slices.json"
"""The name of the index in a checkpoint whose tensors are stored in slices."""
_FORMAT = "qframe-slices-1"

Groups = Mapping[str, Mapping[str, Tensor]]
"""The tensors of a checkpoint by the name of their group ("weights", "optimizer", "average") and their own."""


@attrs.frozen
class Written:
    """What one process has written of a checkpoint.

    Attributes:
        digests: The sha256 of each file, by its name.
        tensors: For each group and each of its tensors: the shape of the full tensor, and the slices that this process
            wrote, as the index stores them.
    """

    digests: dict[str, str]
    tensors: dict[str, dict[str, Any]]


def write_whole(folder: Path, groups: Groups) -> dict[str, str]:
    """Write each group, none of whose tensors is sharded, into a file. Return the sha256 of each file by its name."""
    return {f"{group}.safetensors": write_tensors(folder / f"{group}.safetensors", groups[group]) for group in groups}


def write_slices(folder: Path, groups: Groups, *, rank: int, world: int) -> Written:
    """Write what this process holds of each tensor. Tensors that are not sharded are written by the process of rank 0.

    Args:
        folder: The folder of the checkpoint, which all processes write into.
        groups: The tensors. Every process must pass the same names.
        rank: The number of this process, from 0.
        world: The number of processes.
    """
    written = Written({}, {})
    for group, tensors in groups.items():
        file, own = f"{group}-{rank + 1}-of-{world}.safetensors", dict[str, Tensor]()
        listed = written.tensors[group] = {}
        for name, tensor in tensors.items():
            slices = []
            box = local_box(tensor)
            if (is_sharded(tensor) and box.elements) or (rank == 0 and not is_sharded(tensor)):
                own[name] = local_part(tensor)
                slices.append({"file": file, "begin": box.begin, "shape": box.shape})
            listed[name] = {"shape": list(tensor.shape), "slices": slices}
        if own:
            written.digests[file] = write_tensors(folder / file, own)
    return written


def index_of(written: Iterable[Written]) -> str:
    """Return the index, as JSON, over what all processes of a run have written.

    Raises:
        ValueError: The slices of a tensor do not have as many elements as the tensor.
    """
    merged: dict[str, dict[str, Any]] = {}
    for part in written:
        for group, tensors in part.tensors.items():
            known_group = merged.setdefault(group, {})  # of an optimizer before its first step it has no tensors
            for name, entry in tensors.items():
                known = known_group.setdefault(name, {"shape": entry["shape"], "slices": []})
                known["slices"] += entry["slices"]
    for group, tensors in merged.items():
        for name, entry in tensors.items():
            found = sum(math.prod(one["shape"]) for one in entry["slices"])
            if found != math.prod(entry["shape"]):
                raise ValueError(f"{group}: {name} has shape {entry['shape']}, and {found} elements were written")
    return json.dumps({"format": _FORMAT, "tensors": merged}, separators=(",", ":"), sort_keys=True)


@attrs.frozen(eq=False)
class SlicedTensor:
    """A tensor of a checkpoint, of which any part can be read.

    Attributes:
        name: The tensor's name in the files.
        shape: The shape of the full tensor.
        slices: The file and the place of each slice.
        files: The opened files of the checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    slices: tuple[tuple[str, Box], ...]
    files: _OpenedFiles

    def read(self, box: Box | None = None) -> Tensor:
        """Read the part of the tensor that `box` describes, by default all of it, into new memory on the CPU."""
        box = box or Box.whole(self.shape)
        result: Tensor | None = None
        for file, held in self.slices:
            begin = tuple(map(max, held.begin, box.begin))
            end = tuple(map(min, held.end, box.end))
            if not all(b < e for b, e in zip(begin, end, strict=True)):
                continue
            part = self.files.read(file, self.name, _range(begin, end, held.begin))
            if part.shape == box.shape:
                return part
            if result is None:
                result = part.new_empty(box.shape)
            result[_range(begin, end, box.begin)] = part
        if result is None:
            assert not box.elements, f"{self.name}: no slice has any of {box}"
            return self.files.empty(self.slices, self.name, box.shape)
        return result


class SlicedTensors(Mapping[str, SlicedTensor]):
    """The tensors of one group of a checkpoint, by name. Nothing is read before a tensor is asked to `read`."""

    def __init__(self, tensors: Mapping[str, SlicedTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> SlicedTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def stored_tensors(folder: Path, group: str) -> SlicedTensors:
    """Open the tensors of one group of a checkpoint, whichever processes have written them.

    Args:
        folder: The checkpoint.
        group: The name of the group: "weights", "optimizer" or "average".

    Raises:
        WeightsError: The checkpoint has no such group, or its index cannot be used.
    """
    files = _OpenedFiles(folder)
    if not (folder / INDEX).exists():
        return SlicedTensors(files.whole(group))
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if index["format"] != _FORMAT:
            raise ValueError(f"its format is {index['format']!r}, expected {_FORMAT!r}")
        listed = index["tensors"].get(group)
        found = {} if listed is None else {name: _entry(name, entry, files) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{folder / INDEX}: not an index of slices ({error})") from error
    if listed is None:
        raise _missing(folder, group)
    return SlicedTensors(found)


def _entry(name: str, entry: Any, files: _OpenedFiles) -> SlicedTensor:
    slices = []
    for one in entry["slices"]:
        if PurePosixPath(one["file"]).name != one["file"]:
            raise ValueError(f"{name} lies in {one['file']!r}, outside the folder")
        slices.append((one["file"], Box(tuple(map(int, one["begin"])), tuple(map(int, one["shape"])))))
    shape = tuple(map(int, entry["shape"]))
    boxes = [box for _, box in slices]
    inside = all(
        len(box.begin) == len(box.shape) == len(shape)
        and all(0 <= begin <= end <= side for begin, end, side in zip(box.begin, box.end, shape, strict=True))
        for box in boxes
    )
    if not inside or sum(box.elements for box in boxes) != math.prod(shape):
        raise ValueError(f"the slices of {name} do not make up its shape {list(shape)}")
    return SlicedTensor(name, shape, tuple(slices), files)


def _range(begin: tuple[int, ...], end: tuple[int, ...], origin: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, origin, strict=True))


def _missing(folder: Path, group: str) -> WeightsError:
    return WeightsError(
        f"{folder / f'{group}.safetensors'}: not in this checkpoint",
        "The run was started with other settings; see its config.toml.",
    )


class _OpenedFiles:
    """The safetensors files of a checkpoint, each of which is opened (mapped into memory) when it is first read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[str, Any] = {}

    def whole(self, group: str) -> dict[str, SlicedTensor]:
        """Return the tensors of a group that was written into one file."""
        file = f"{group}.safetensors"
        found = {}
        for name in self._open(file).keys():  # noqa: SIM118 - not a mapping
            shape = tuple(self._open(file).get_slice(name).get_shape())
            found[name] = SlicedTensor(name, shape, ((file, Box.whole(shape)),), self)
        return found

    def read(self, file: str, name: str, place: tuple[slice, ...]) -> Tensor:
        """Read a part of a tensor in a file. Only this part is copied into memory."""
        opened = self._open(file)
        found: Tensor = opened.get_slice(name)[place] if place else opened.get_tensor(name)
        return found.clone()

    def empty(self, slices: Iterable[tuple[str, Box]], name: str, shape: tuple[int, ...]) -> Tensor:
        """Return an empty tensor with the dtype of the stored one; float32 if no process stored any of it."""
        for file, _ in slices:
            return self._open(file).get_tensor(name).new_empty(shape)  # type: ignore[no-any-return]
        return torch.empty(shape)

    def _open(self, file: str) -> Any:
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(self._folder / file, framework="pt")
            except FileNotFoundError as error:
                raise _missing(self._folder, file.removesuffix(".safetensors")) from error
            except SafetensorError as error:
                raise WeightsError(f"{self._folder / file}: not a safetensors file ({error})") from error
        return self._opened[file]
