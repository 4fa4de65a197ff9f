"""Makes and reads shards: safetensors files that hold the cache's entries, and that are never changed once written.

The header of a shard holds a checksum of every tensor, over its name, dtype, shape and bytes, and the file's name is
the hash of the header. A flipped bit is therefore found wherever it is, and the index can be built from the shards
alone.
"""

from __future__ import annotations

import json
import math
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
_KEY_BYTES = 32  # of a key, which is written in hexadecimal
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
    """The description of one tensor in a shard: its name, dtype and shape, the place of its bytes, and their checksum.

    Attributes:
        name: The tensor's name within the entry.
        dtype: The dtype as safetensors spells it.
        shape: The tensor's shape.
        begin: The offset of the tensor's first byte in the file.
        end: The offset of the byte after the tensor's last byte in the file.
        checksum: The xxh3-128 in hexadecimal that the function `checksum` returns for the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    checksum: str


@attrs.frozen
class Entry:
    """An entry of the cache without the values of its tensors: which shard holds it, and where each tensor lies there.

    Attributes:
        key: The entry's key, 64 hexadecimal digits.
        shard: The file name of the shard.
        tensors: Where each tensor of the entry lies.
    """

    key: str
    shard: str
    tensors: tuple[StoredTensor, ...]

    @property
    def size(self) -> int:
        """The size of all tensors of the entry together, in bytes."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors)


@attrs.frozen
class Header:
    """The content of a shard's header.

    Attributes:
        entries: The entries in the shard.
        about: By key, the JSON of the values that the key was hashed from (see `qframe.cache.keys.canonical`). It is
            empty for shards of older versions.
    """

    entries: tuple[Entry, ...]
    about: Mapping[str, str]


def make_shard(values: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, str]) -> tuple[str, bytes]:
    """Make a shard in memory, and return its file name and its bytes.

    Args:
        values: The tensors of each entry, by the entry's key and the tensor's name.
        about: By key, the JSON of the values that the key was hashed from. It is stored for `qframe cache explain`.
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
    """Read the header of the shard at `path`, and check that its hash is the file's name.

    Raises:
        ValueError: The header is damaged, the file is cut short, or it is no shard of this version.
    """
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
        if len(bytes.fromhex(key)) != _KEY_BYTES or begin < data_begin or not is_sound(stored):
            raise ValueError(f"what it says of {full_name[:80]!r} cannot be true")
        found.setdefault(key, []).append(stored)
        end = max(end, end_)
    if checksums.keys() != header.keys():
        raise ValueError("its tensors are not those that it was written with")
    if end != file_size:
        raise ValueError(f"{file_size} bytes, written with {end}")
    entries = tuple(Entry(key, shard, tuple(tensors)) for key, tensors in found.items())
    about = metadata.get("about", {})
    if not all(isinstance(text, str) for text in about.values()):
        raise ValueError("what it says of the ingredients of its entries is no text")
    return Header(entries, about)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a view of the bytes of a tensor, which must be contiguous and on the CPU. The bytes are not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def is_sound(stored: StoredTensor) -> bool:
    """Whether the description of a tensor can be true: a known dtype, and as many bytes as its shape needs."""
    if not all(isinstance(text, str) for text in (stored.name, stored.dtype, stored.checksum)):
        return False
    if not all(type(number) is int for number in (stored.begin, stored.end, *stored.shape)):
        return False
    if stored.dtype not in _DTYPES or stored.begin < 0 or any(side < 0 for side in stored.shape):
        return False
    return stored.end - stored.begin == math.prod(stored.shape) * _DTYPES[stored.dtype].itemsize


def checksum(full_name: str, dtype: str, shape: Iterable[int], data: memoryview) -> str:
    """Return the xxh3-128, in hexadecimal, over a tensor's name ("KEY/NAME"), dtype, shape and bytes."""
    total = xxhash.xxh3_128(f"{full_name} {dtype} {'x'.join(map(str, shape))}\n".encode())
    total.update(data)
    return total.hexdigest()


def read_tensor(handle: int, entry: Entry, stored: StoredTensor, *, verify: bool) -> Tensor:
    """Read one tensor of a shard into newly allocated memory on the CPU.

    Args:
        handle: The file descriptor of the opened shard.
        entry: The entry that the tensor belongs to.
        stored: Where in the shard the tensor lies.
        verify: Whether to compare the checksum of the bytes that were read.

    Raises:
        ValueError: The file is cut short, or `verify` is true and the checksum differs.
    """
    if (size := os.fstat(handle).st_size) < stored.end:  # before memory is taken for what a broken index promises
        raise ValueError(f"cut short: {stored.end} bytes were written, {size} are there")
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
    """Return a contiguous copy of a tensor on the CPU. Raises ValueError if a shard cannot hold the tensor's dtype."""
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensors of {tensor.dtype} cannot be cached")
    return tensor.detach().to("cpu", copy=True).contiguous()
