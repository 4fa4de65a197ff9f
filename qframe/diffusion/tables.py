"""Keeps position tables from one forward pass to the next, and lets go of those that were used longest ago."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MOST_BYTES = 128 * 2**20
"""What the tables of one kind may take. The table of a picture of 1024 x 1024 pixels takes 2 MiB."""


_ALL: weakref.WeakSet[TableCache] = weakref.WeakSet()


class TableCache:
    """Tables by key, up to a number of bytes. A table that is larger than that is made anew whenever it is used."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._tables: OrderedDict[Hashable, Tensor] = OrderedDict()
        _ALL.add(self)

    @property
    def nbytes(self) -> int:
        """How many bytes the kept tables take."""
        return sum(table.nbytes for table in self._tables.values())

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the table of a key; `make` makes it if it is not kept.

        Also while sampling in inference mode an ordinary tensor is made, which training may use later.
        """
        table = self._tables.pop(key, None)
        if table is None:
            with torch.inference_mode(False):
                table = make()
        if table.nbytes <= self.most_bytes:
            self._tables[key] = table  # now the newest
            while self.nbytes > self.most_bytes:
                self._tables.popitem(last=False)
        return table

    def swap(self, tables: OrderedDict[Hashable, Tensor]) -> OrderedDict[Hashable, Tensor]:
        """Keep other tables from now on, and return those that were kept so far."""
        self._tables, before = tables, self._tables
        return before


@contextmanager
def without_tables() -> Iterator[None]:
    """Return a context in which all caches are empty at first. What they held before is there again afterwards."""
    kept = {cache: cache.swap(OrderedDict()) for cache in list(_ALL)}
    try:
        yield
    finally:
        for cache in list(_ALL):
            cache.swap(kept.get(cache, OrderedDict()))
