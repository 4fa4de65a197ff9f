"""Writing entries: they are gathered in memory until they make a shard, and a shard is published whole."""

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
    """Entries that were put into a cache and are not in a shard yet.

    Attributes:
        shard_bytes: The most bytes of tensors that a shard is to hold. A single larger entry gets a shard of its own.
        tensors: The tensors of each entry, by key.
        about: In JSON, what an entry was made of, by key; not every entry has it.
        bytes: Bytes of all tensors.
        since: When the first of these entries came, on the monotonic clock, in seconds.
    """

    shard_bytes: int
    tensors: dict[str, Tensors] = attrs.field(factory=dict)
    about: dict[str, str] = attrs.field(factory=dict)
    bytes: int = 0
    since: float = 0.0

    def has_room(self, entries: Collection[Tensors]) -> bool:
        """Whether one shard holds these entries as well."""
        fits = self.bytes + _size(entries) <= self.shard_bytes
        return fits and len(self.tensors) + len(entries) <= _MOST_ENTRIES

    def add(self, entries: Mapping[str, Tensors], about: Mapping[str, str]) -> None:
        """Gather entries, which must be new."""
        if not self.tensors:
            self.since = time.monotonic()
        self.tensors |= entries
        self.about |= about
        self.bytes += _size(entries.values())

    def first_shard(self) -> list[str]:
        """Return the keys of the first entries that fit in one shard, at least one."""
        taken: list[str] = []
        size = 0
        for key, tensors in self.tensors.items():
            size += _size([tensors])
            if taken and (size > self.shard_bytes or len(taken) == _MOST_ENTRIES):
                break
            taken.append(key)
        return taken

    def remove(self, keys: Iterable[str]) -> None:
        """Let go of entries that were written."""
        for key in keys:
            self.bytes -= _size([self.tensors.pop(key)])
            self.about.pop(key, None)


def write_shard(
    folder: Path, tensors: Mapping[str, Tensors], about: Mapping[str, str]
) -> tuple[str, tuple[Entry, ...]]:
    """Write entries as a shard in `folder`; return its file name and where the entries lie in it.

    Args:
        folder: The folder of shards.
        tensors: The tensors of each entry, by key and name.
        about: In JSON, what an entry was made of. Keys without an entry are left out.

    Raises:
        ResourceError: The disk is full; nothing was written.
    """
    name, data = make_shard(tensors, {key: text for key, text in about.items() if key in tensors})
    require_space(folder, len(data))
    write_file(folder / name, data)
    return name, read_header(folder / name).entries


def _size(entries: Iterable[Tensors]) -> int:
    return sum(tensor.nbytes for tensors in entries for tensor in tensors.values())
