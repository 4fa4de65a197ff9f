"""Collects the entries that are put into a cache in memory, and writes them as a shard in one step."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import attrs
from torch import Tensor

from qframe.cache.shards import Entry, make_shard, read_header
from qframe.files.storage import require_space, write_file

_MOST_ENTRIES = 20_000  # keeps a shard's header far below safetensors' limit of 100 MB

Tensors = Mapping[str, Tensor]
"""The tensors of one entry, by name."""


@attrs.define(eq=False)
class PendingEntries:
    """The entries that were put into a cache and are not written to a shard yet.

    Attributes:
        shard_bytes: The most bytes of tensors that a shard should hold. A single larger entry gets a shard of its own.
        tensors: The tensors of each entry, by key.
        about: By key, the JSON of the values that the key was hashed from; some entries have none.
        bytes: The size of all tensors together, in bytes.
        since: The time at which the oldest of these entries was added, in seconds of `time.monotonic`.
    """

    shard_bytes: int
    tensors: dict[str, Tensors] = attrs.field(factory=dict)
    about: dict[str, str] = attrs.field(factory=dict)
    bytes: int = 0
    since: float = 0.0

    def has_room(self, entries: Collection[Tensors]) -> bool:
        """Whether these entries still fit into one shard together with those that are collected already."""
        fits = self.bytes + _size(entries) <= self.shard_bytes
        return fits and len(self.tensors) + len(entries) <= _MOST_ENTRIES

    def add(self, entries: Mapping[str, Tensors], about: Mapping[str, str]) -> None:
        """Add entries whose keys are not collected yet, and the JSON of the values that the keys were hashed from."""
        if not self.tensors:
            self.since = time.monotonic()
        self.tensors |= entries
        self.about |= about
        self.bytes += _size(entries.values())

    def first_shard(self) -> list[str]:
        """Return the keys of as many of the oldest entries as fit into one shard, but at least one key."""
        taken: list[str] = []
        size = 0
        for key, tensors in self.tensors.items():
            size += _size([tensors])
            if taken and (size > self.shard_bytes or len(taken) == _MOST_ENTRIES):
                break
            taken.append(key)
        return taken

    def remove(self, keys: Iterable[str]) -> None:
        """Remove the entries of `keys`, which the caller has written to a shard."""
        for key in keys:
            self.bytes -= _size([self.tensors.pop(key)])
            self.about.pop(key, None)


def write_shard(
    folder: Path, tensors: Mapping[str, Tensors], about: Mapping[str, str]
) -> tuple[str, tuple[Entry, ...]]:
    """Write entries as one shard in `folder`, and return the shard's file name and where each entry lies in the file.

    Args:
        folder: The cache's folder of shards.
        tensors: The tensors of each entry, by the entry's key and the tensor's name.
        about: By key, the JSON of the values that the key was hashed from. Keys that are not in `tensors` are ignored.

    Raises:
        ResourceError: The disk is full; nothing was written.
    """
    name, data = make_shard(tensors, {key: text for key, text in about.items() if key in tensors})
    require_space(folder, len(data))
    write_file(folder / name, data)
    return name, read_header(folder / name).entries


def _size(entries: Iterable[Tensors]) -> int:
    return sum(tensor.nbytes for tensors in entries for tensor in tensors.values())
