"""Keeps a cache's index in step with the shard files in the cache's folder, which other processes add and rewrite."""

from __future__ import annotations

import contextlib
import hashlib
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
from qframe.files.disk import can_write, make_folder
from qframe.files.filesystems import local_folder, network_type
from qframe.files.locks import exclusive
from qframe.files.storage import clear_leftovers

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

LOCK_SECONDS = 900.0
"""The seconds that one process waits for another process that changes or prunes the same cache."""
_SETTLED_NS = 2_000_000_000


def local_index(folder: Path) -> Path:
    """Return the path of this machine's own index of the cache in `folder`, and create the folder that it lies in."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return local_folder("indexes") / f"{name}.sqlite"


class ShardListing:
    """The shards in one cache's folder, and the index over them. Several processes and threads may use it at once.

    Attributes:
        folder: The cache's folder.
        shards: The folder of shards, which lies inside the cache's folder.
        writable: Whether this process may write into both folders. A cache that it may not write to can be read.
    """

    def __init__(self, folder: Path) -> None:
        """Create the cache's folder and its folder of shards if there are none. The index is not read yet.

        The index lies in the cache's folder. If that is on a network file system, whose locks SQLite cannot rely on, or
        cannot be written to, this machine has an index of its own on a local disk.

        Raises:
            ResourceError: There is no such folder, and it cannot be made.
        """
        self.folder = folder
        self.shards = make_folder(folder / "shards", "cache.dir")
        self.writable = can_write(folder) and can_write(self.shards)
        kind = network_type(folder) if self.writable else "read-only"
        self._alone = kind is not None
        self._index = Index(local_index(folder) if self._alone else folder / "index.sqlite")
        if self._alone:
            logger.info("%s: on a file system (%s) that takes no index, so that is %s", folder, kind, self._index.path)
        self._held = threading.local()

    def close(self) -> None:
        """Close the connection to the index."""
        self._index.close()

    def ask(self, question: Callable[[Index], _T]) -> _T:
        """Call `question` with the index, and return its result.

        If the index turns out to be damaged, it is built again from the shards, and `question` is called once more.
        """
        try:
            return question(self._index)
        except IndexDamagedError as error:
            logger.warning("%s: damaged (%s); built again from the shards", self._index.path, error)
            try:
                self._index.delete()
                self._update()
                return question(self._index)
            except IndexDamagedError as again:
                raise CacheError(
                    f"{self._index.path}: damaged, and so again after it was built from the shards ({again})",
                    "Check the disk; `qframe cache verify` reads every entry.",
                ) from again

    def update(self, *, always: bool = False) -> None:
        """Add new shards to the index and remove vanished ones, if the folder of shards changed since the last time.

        Args:
            always: List the folder even if it did not change, because the index may name shards that never were there.
        """
        self.ask(lambda index: self._update(always=always))

    def refresh(self) -> None:
        """Learn of shards that other machines wrote or removed, if this machine has an index of its own."""
        if self._alone:
            self.ask(lambda index: self._update(always=True))

    def headers(self) -> Iterator[tuple[str, Header | None]]:
        """Yield the file name and the header of every shard; the header is None if it is damaged or unreadable."""
        for shard in sorted(self.ask(Index.shards)):
            try:
                yield shard, read_header(self.shards / shard)
            except FileNotFoundError:
                continue  # another process has rewritten the shard meanwhile
            except (ValueError, OSError):
                yield shard, None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context in which no other process or thread updates the index from the folder, or rewrites shards.

        A thread that is inside already may enter again.

        Raises:
            CacheError: Another process has been inside for 900 seconds since this one began to wait.
        """
        if getattr(self._held, "already", False):
            yield
            return
        # Nobody rewrites a shard of a folder that cannot be written to; the index of this machine still has to be kept.
        lock = self.folder / ".lock" if self.writable else self._index.path.with_suffix(".lock")
        with exclusive(lock, self._busy, timeout=LOCK_SECONDS):
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

    def _update(self, *, always: bool = False) -> None:
        """Bring the index up to date. The time of a folder on another machine may be known late: `always` lists it."""
        stamp = self.shards.stat().st_mtime_ns
        if self._index.note(LISTED) == str(stamp) and not always:
            return
        with self.exclusive():
            clear_leftovers(self.shards)
            # In this order: a shard that is published in between is one that the index lacks, not one that vanished.
            known = self._index.shards()
            with os.scandir(self.shards) as listing:
                present = {item.name for item in listing if item.name.endswith(SUFFIX) and item.name[0] != "."}
            vanished = known.keys() - present
            for name in vanished:
                self._index.remove(name)
            # An entry of a shard that another machine removed may have a copy in a shard that is known already.
            for name in sorted(present if vanished and self._alone else present - known.keys()):
                self._add(name)
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
