"""Writes safetensors files tensor by tensor, and hashes what is written, so that no file is read again for its digest.

The files are those that `safetensors.torch.save_file` writes, to the byte. That function needs all tensors in memory at
once, and its caller would have to read the file to learn its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

# In the order in which safetensors writes them: widest first (Dtype in safetensors' tensor.rs, which sorts by it).
_NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_NAMES)}
_ALIGNMENT = 8


class HashedFile:
    """A new file that is written from its beginning to its end, and whose sha256 is known when it is closed.

    It is a context manager; leaving it syncs the file to disk and closes it.
    """

    def __init__(self, path: Path) -> None:
        """Create the file. Raises FileExistsError if there is one at `path`."""
        self._stream = path.open("xb", buffering=0)
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the file."""
        self._sha256.update(data)
        left = memoryview(data)
        while left:
            left = left[self._stream.write(left) :]

    @property
    def digest(self) -> str:
        """The sha256 of what was written so far, in hexadecimal."""
        return self._sha256.hexdigest()


def write_tensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    *,
    value: Callable[[str], Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
    aligned: int = _ALIGNMENT,
) -> str:
    """Write a safetensors file, sync it to disk, and return the sha256 of its bytes, in hexadecimal.

    Args:
        file: The file, which must not exist.
        tensors: The tensors, by name. Only one of them at a time is copied to the CPU, if it lies elsewhere.
        value: Returns what is written under a name, with the dtype and the shape of the tensor in `tensors`, which may
            then lie on the meta device. It is called for one name after another, in the order of the file. By default
            the tensors themselves are written.
        metadata: The metadata of the file's header.
        aligned: Every tensor begins at a multiple of this many bytes. Where that needs a gap, a tensor "padding/N"
            fills it, because the format has no gaps. Some kernels of torch crash where mapped tensors begin elsewhere
            than at multiples of 16, and torch itself allocates at multiples of 64.
    """
    names = sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    gaps: dict[str, int] = {}
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        described = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = {**described, "data_offsets": [begin, end]}
        if aligned > _ALIGNMENT and (gap := -end % aligned):
            header[f"padding/{len(gaps)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            gaps[name] = gap
            end += gap
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % aligned)
    with HashedFile(file) as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in names:
            found = tensors[name] if value is None else value(name)
            if found.dtype != tensors[name].dtype or found.shape != tensors[name].shape:
                raise ValueError(f"{name}: {found.dtype} {list(found.shape)}, announced with {tensors[name].dtype}")
            stream.write(_raw(found))
            stream.write(bytes(gaps.get(name, 0)))
        return stream.digest


def write_text(file: Path, text: str) -> str:
    """Write a new text file in UTF-8, sync it to disk, and return the sha256 of its bytes, in hexadecimal."""
    with HashedFile(file) as stream:
        stream.write(text.encode())
        return stream.digest


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data
