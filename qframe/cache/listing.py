"""Which shards lie in a cache's folder, and which entries they hold: the index, kept in step with the files."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from qframe.cache.index import LISTED, Index, IndexDamagedError
from qframe.cache.shards import SUFFIX, Header, read_header
from qframe.errors import CacheError
from qframe.files.locks import exclusive
from qframe.files.storage import clear_leftovers

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

LOCK_SECONDS = 900.0
"""How long one process waits for another that changes or prunes the same cache."""
_SETTLED_NS = 2_000_000_000


class ShardListing:
    """The shards of one cache folder. Several processes and threads may use it at once.

    Attributes:
        folder: The cache's folder.
        shards: The folder inside it that holds the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.shards.mkdir(parents=True, exist_ok=True)
        self._index = Index(folder / "index.sqlite")
        self._held = threading.local()

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def ask(self, question: Callable[[Index], _T]) -> _T:
        """Return what `question` reads from the index. A damaged index is first built again from the shards."""
        try:
            return question(self._index)
        except IndexDamagedError as error:
            logger.warning("%s: damaged (%s); built again from the shards", self._index.path, error)
            self._index.delete()
            self._update()
            return question(self._index)

    def update(self) -> None:
        """Bring the index up to date with the shards that are there, if the folder changed since it was listed."""
        self.ask(lambda index: self._update())

    def headers(self) -> Iterator[tuple[str, Header | None]]:
        """Yield the name and the header of every shard; the header is None if it cannot be read."""
        for shard in sorted(self.ask(Index.shards)):
            try:
                yield shard, read_header(self.shards / shard)
            except FileNotFoundError:
                continue  # another process has rewritten the shard meanwhile
            except (ValueError, OSError):
                yield shard, None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, no other process or thread lists or rewrites shards. CacheError if another does so for too long."""
        if getattr(self._held, "already", False):
            yield
            return
        with exclusive(self.folder / ".lock", self._busy, timeout=LOCK_SECONDS):
            self._held.already = True
            try:
                yield
            finally:
                self._held.already = False

    def _busy(self) -> CacheError:
        return CacheError(
            f"{self.folder}: another process has been changing this cache for {LOCK_SECONDS:.0f} s",
            "Wait until it is done, or end it.",
        )

    def _update(self) -> None:
        stamp = self.shards.stat().st_mtime_ns
        if self._index.note(LISTED) == str(stamp):
            return
        with self.exclusive():
            clear_leftovers(self.shards)
            # In this order: a shard that is published in between is one that the index lacks, not one that vanished.
            known = self._index.shards()
            with os.scandir(self.shards) as listing:
                present = {item.name for item in listing if item.name.endswith(SUFFIX) and item.name[0] != "."}
            for name in sorted(present - known.keys()):
                self._add(name)
            for name in known.keys() - present:
                self._index.remove(name)
            # A folder that changed less than two seconds ago may change again and keep its time stamp.
            if time.time_ns() - stamp > _SETTLED_NS:
                self._index.set_note(LISTED, str(stamp))

    def _add(self, name: str) -> None:
        try:
            self._index.add(name, read_header(self.shards / name).entries)
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            logger.warning("%s: %s; its entries will be made again", self.shards / name, error)
            self._index.add_damaged(name, str(error))
