"""Shards: safetensors files that hold entries, are written once and never changed.

The header of a shard holds a checksum of every tensor, over its name, dtype, shape and bytes; the file's name is the
hash of the header. So a flipped bit is found wherever it is, and the index can be built from the shards alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
import xxhash
from safetensors.torch import save
from torch import Tensor

SUFFIX = ".safetensors"
_FORMAT = "qframe-cache-1"
_METADATA = "qframe"
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

if sys.byteorder != "little":
    raise ImportError("the cache stores tensors as they lie in memory, which must be little-endian")


@attrs.frozen
class StoredTensor:
    """Where one tensor of an entry lies in its shard.

    Attributes:
        name: The tensor's name within the entry.
        dtype: The dtype as safetensors spells it.
        shape: The shape.
        begin: The place of its first byte in the file.
        end: The place after its last byte in the file.
        checksum: xxh3-128 in hexadecimal; see `checksum`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    checksum: str


@attrs.frozen
class Entry:
    """Where the tensors of one key lie.

    Attributes:
        key: The entry's key, 64 hexadecimal digits.
        shard: The file name of the shard.
        tensors: The entry's tensors.
    """

    key: str
    shard: str
    tensors: tuple[StoredTensor, ...]

    @property
    def size(self) -> int:
        """The bytes of all its tensors."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors)


@attrs.frozen
class Header:
    """The header of a shard.

    Attributes:
        entries: The entries in the shard.
        about: In JSON, what each entry was made of, by key. Shards of older versions lack it.
    """

    entries: tuple[Entry, ...]
    about: Mapping[str, str]


def make_shard(values: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, str]) -> tuple[str, bytes]:
    """Make a shard in memory, and return its file name and content.

    Args:
        values: Tensors by key and name.
        about: In JSON, what each entry was made of, by key. Only `qframe cache explain` and people read it.
    """
    tensors = {f"{key}/{name}": tensor for key, named in values.items() for name, tensor in named.items()}
    checksums = {
        name: checksum(name, _NAMES[tensor.dtype], tuple(tensor.shape), raw_bytes(tensor))
        for name, tensor in tensors.items()
    }
    # In one piece of metadata: safetensors would write several pieces in a different order every time.
    ours = {
        "format": _FORMAT,
        "checksums": checksums,
        "about": dict(about),
        "made with": f"torch {torch.__version__}",
    }
    data = save(tensors, {_METADATA: json.dumps(ours, separators=(",", ":"))})
    size = 8 + int.from_bytes(data[:8], "little")
    return xxhash.xxh3_128(data[:size]).hexdigest() + SUFFIX, data


def read_header(path: Path) -> Header:
    """Read the header of a shard. ValueError if it is damaged or of another format; the message says how."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ValueError("cut short within its header")
        header = stream.read(length)
    if xxhash.xxh3_128(start + header).hexdigest() != path.name.removesuffix(SUFFIX):
        raise ValueError("its header is not the one it was written with")
    try:
        return _parse(json.loads(header), path.name, data_begin=8 + length, file_size=size)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a shard of this version of qframe ({error!r})") from error


def _parse(header: dict[str, Any], shard: str, *, data_begin: int, file_size: int) -> Header:
    metadata = json.loads(header.pop("__metadata__")[_METADATA])
    if metadata["format"] != _FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}, expected {_FORMAT!r}")
    checksums = metadata["checksums"]
    found: dict[str, list[StoredTensor]] = {}
    end = data_begin
    for full_name, tensor in header.items():
        key, _, name = full_name.partition("/")
        begin, end_ = (data_begin + offset for offset in tensor["data_offsets"])
        stored = StoredTensor(name, tensor["dtype"], tuple(tensor["shape"]), begin, end_, checksums[full_name])
        found.setdefault(key, []).append(stored)
        end = max(end, end_)
    if end != file_size:
        raise ValueError(f"{file_size} bytes, written with {end}")
    entries = tuple(Entry(key, shard, tuple(tensors)) for key, tensors in found.items())
    return Header(entries, metadata.get("about", {}))


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def checksum(full_name: str, dtype: str, shape: Iterable[int], data: memoryview) -> str:
    """Return the xxh3-128 over a tensor's name (with the entry's key), dtype, shape and bytes."""
    total = xxhash.xxh3_128(f"{full_name} {dtype} {'x'.join(map(str, shape))}\n".encode())
    total.update(data)
    return total.hexdigest()


def read_tensor(handle: int, entry: Entry, stored: StoredTensor, *, verify: bool) -> Tensor:
    """Read one tensor of a shard into memory of its own.

    Args:
        handle: The shard's file descriptor.
        entry: The tensor's entry.
        stored: Where the tensor lies.
        verify: Whether the checksum is compared.

    Raises:
        ValueError: The file is cut short, or the checksum differs.
    """
    buffer = torch.empty(stored.end - stored.begin, dtype=torch.uint8)
    view = buffer.numpy().data
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], stored.begin + done)
        if count == 0:
            raise ValueError(f"cut short: {stored.end} bytes were written")
        done += count
    if verify:
        full_name = f"{entry.key}/{stored.name}"
        if checksum(full_name, stored.dtype, stored.shape, view) != stored.checksum:
            raise ValueError("its bytes are not those that were written (xxh3-128)")
    return buffer.view(_DTYPES[stored.dtype]).view(stored.shape)


def storable(tensor: Tensor) -> Tensor:
    """Copy a tensor to contiguous memory on the CPU. ValueError if its dtype cannot be stored."""
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensors of {tensor.dtype} cannot be cached")
    return tensor.detach().to("cpu", copy=True).contiguous()
