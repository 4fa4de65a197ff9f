"""Reads what a file of weights holds from its header, and says what a file is that holds no readable weights.

Imports no torch.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from qframe.errors import WeightsError

GGUF = ".gguf"
"""The ending of GGUF files, whose weights are quantised in blocks."""
SINGLE_FILES = (".safetensors", ".sft", GGUF)
"""The endings of files that hold the weights of a component by themselves."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""The endings of files whose weights are pickled, so that opening them could run code."""
STANDARD = ("diffusion_pytorch_model", "model")
"""The stems by which diffusers and transformers name files of weights."""
_LARGEST_HEADER = 64 * 1024 * 1024
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64},
}
_BEGINNINGS = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it: its weights are pickled, and opening them could run code"),
    (b"\x80", "a pickle, which could run code when it is opened"),
    (b"version https://git-lfs", "a pointer of Git LFS, and not the file itself (`git lfs pull` fetches that)"),
    (b"<", "a page of HTML or XML, such as a download leaves that was refused"),
    (b"{", "a JSON file"),
)
_NAMED = re.compile(r"(?P<stem>[^.]+)(?:\.(?P<variant>.+?))?(?:-\d+-of-\d+)?\.safetensors")


@attrs.frozen
class StoredTensor:
    """A tensor in a file of weights, without its values.

    Attributes:
        dtype: The dtype as safetensors spells it, for example "BF16".
        shape: The shape.
    """

    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path, name: str) -> Mapping[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    A header is read once for as long as the file's size and time of change stay the same.

    Args:
        file: The file.
        name: How messages name the file.

    Raises:
        WeightsError: The file cannot be read, is no safetensors file, or ends too early; the message says what it is.
    """
    try:
        found = file.stat()
        return _header(str(file), found.st_size, found.st_mtime_ns)[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        advice = "Download this file again." if isinstance(error, _CutOffError | OSError) else None
        raise WeightsError(
            f"{name} has no header of safetensors: {told or repr(error)}",
            advice or "Give a file in the safetensors format.",
        ) from error


def read_metadata(file: Path) -> Mapping[str, str]:
    """Return the metadata in the header of a safetensors file that `read_header` could read."""
    found = file.stat()
    return _header(str(file), found.st_size, found.st_mtime_ns)[1]


class _CutOffError(ValueError):
    """A file ends before the last of its tensors."""


@functools.lru_cache(maxsize=64)
def _header(file: str, size: int, changed: int) -> tuple[Mapping[str, StoredTensor], Mapping[str, str]]:
    with Path(file).open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LARGEST_HEADER or stream.read(1) != b"{":
            raise ValueError(f"it is {what_is(Path(file))}")
        if 8 + length > size:
            raise _CutOffError(f"its header has {length} bytes, and the file {size}: it was cut off")
        header = json.loads(b"{" + stream.read(length - 1))
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    end = 0
    for name, entry in header.items():
        tensors[name] = StoredTensor(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
        end = max(end, int(entry["data_offsets"][1]))
    if 8 + length + end > size:
        raise _CutOffError(f"its tensors need {8 + length + end} bytes, and the file has {size}: it was cut off")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def what_is(file: Path) -> str:
    """Say in a few words what a file is that is no safetensors file, as far as its first bytes tell."""
    with file.open("rb") as stream:
        start = stream.read(24)
    if not start:
        return "an empty file"
    return next((words for beginning, words in _BEGINNINGS if start.startswith(beginning)), "of an unknown kind")


def variant_of(file_name: str) -> str | None:
    """Return the variant in the name of a file of weights, such as "fp16" in model.fp16.safetensors; None without."""
    found = _NAMED.fullmatch(file_name)
    return found["variant"] if found else None


def is_standard(file_name: str) -> bool:
    """Whether a file of weights is named as diffusers or transformers name it."""
    found = _NAMED.fullmatch(file_name)
    return found is not None and found["stem"] in STANDARD


def choose_files(files: Iterable[Path], variant: str | None, name: str) -> list[Path]:
    """Return those of a component's files of weights that are read, sorted by name.

    They are of one variant: the one that was asked for if there is such a file, else the plain files, else the only
    variant that there is. If files are named as libraries name them, others are left out.

    Args:
        files: The safetensors files of the component's subfolder.
        variant: The variant that was asked for.
        name: How messages name the component.

    Raises:
        WeightsError: There are several variants, no plain files, and none was asked for.
    """
    sets: dict[str | None, list[Path]] = {}
    for file in sorted(files):
        sets.setdefault(variant_of(file.name), []).append(file)
    if len(sets) > 1 and variant not in sets and None not in sets:
        raise WeightsError(
            f"{name} has its weights in several variants: " + ", ".join(sorted(str(one) for one in sets)),
            "Choose one by the key `variant`.",
        )
    plain = None if None in sets else next(iter(sets), None)
    chosen = sets.get(variant if variant in sets else plain, [])
    return [file for file in chosen if is_standard(file.name)] or chosen


def index_variant(file_name: str) -> str | None:
    """Return the variant in the name of an index, in either of the two places that libraries put it."""
    before, _, after = file_name.removesuffix(".json").partition(".safetensors.index")
    return after.removeprefix(".") or variant_of(f"{before}.safetensors")


def shards_of(index: Any, name: str) -> dict[str, str]:
    """Return the file of each tensor that an index of weights names.

    Args:
        index: The content of the index.
        name: How messages name the index.

    Raises:
        WeightsError: The table `weight_map` is missing, or does not map names of tensors to names of files.
    """
    table = index.get("weight_map")
    plain = isinstance(table, dict) and all(isinstance(one, str) and Path(one).name == one for one in table.values())
    if not plain:
        raise WeightsError(
            f"{name}: weight_map is {_described(table)}, expected an object from names of tensors to names of files",
            "Download this file again.",
        )
    return dict(table)


def refuse_unlike_index(index_name: str, table: Mapping[str, str], headers: Mapping[str, Iterable[str]]) -> None:
    """Refuse an index that says of a file that it holds tensors which it does not hold.

    Args:
        index_name: How messages name the index.
        table: The file of each tensor by the index.
        headers: The names of the tensors that each file holds.

    Raises:
        WeightsError: A file lacks tensors; the message names index, file and some tensors.
    """
    held = {file: set(names) for file, names in headers.items()}
    absent: dict[str, list[str]] = {}
    for tensor, file in table.items():
        if tensor not in held[file]:
            absent.setdefault(file, []).append(tensor)
    if absent:
        file, tensors = next(iter(absent.items()))
        raise WeightsError(
            f"{index_name} says that {file} holds {len(tensors)} weights which are not in that file: "
            + ", ".join(sorted(tensors)[:3]),
            "Index and shards do not belong together: take both from the same copy of the model.",
        )


def _described(value: object) -> str:
    names = {dict: "an object with other values", list: "a list", type(None): "missing"}
    return names.get(type(value), f"{value!r:.40}")
