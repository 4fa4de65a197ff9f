"""The store itself: put, get, verify, drop. Knows keys and tensors, nothing of what they mean."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import attrs
from torch import Tensor

from qframe.cache.index import Index, IndexDamagedError
from qframe.cache.shards import SUFFIX, Entry, Header, make_shard, read_header, read_tensor, storable
from qframe.cache.users import FolderUsers
from qframe.errors import CacheError, QframeError
from qframe.files.digests import Stamp
from qframe.files.locks import exclusive
from qframe.files.storage import clear_leftovers, require_space, write_file
from qframe.progress import SILENT, Progress

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_MOST_ENTRIES = 20_000  # keeps a shard's header far below safetensors' limit of 100 MB
_OPEN_SHARDS = 256
_MOST_RECENT = 200_000  # about 150 MB
LISTED = "shards folder as it was when it was listed"
_SETTLED_NS = 2_000_000_000
_LOCK_SECONDS = 900.0


class DamagedEntryError(CacheError):
    """An entry whose bytes are not those that were written. `key`: which."""

    def __init__(self, message: str, hint: str, key: str) -> None:
        super().__init__(message, hint)
        self.key = key


@attrs.frozen
class Damage:
    """Something that `Cache.verify` found. key: None if a shard's header is meant."""

    shard: str
    key: str | None
    reason: str

    def __str__(self) -> str:
        what = "header" if self.key is None else f"entry {self.key[:16]}"
        return f"{self.shard}: {what}: {self.reason}"


@attrs.frozen
class CacheStats:
    """How much a cache holds."""

    entries: int
    shards: int
    bytes: int


class Cache:
    """A folder of entries: named tensors by key.

    Entries are gathered and written as sealed shards of at most `shard_bytes`, or after `shard_seconds` of work:
    what a killed builder loses. Any number of processes may write and read one folder at once.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = 256_000_000, shard_seconds: float = 30.0) -> None:
        self.folder = folder
        self._shards = folder / "shards"
        self._shards.mkdir(parents=True, exist_ok=True)
        self._index = Index(folder / "index.sqlite")
        self._shard_bytes = shard_bytes
        self._shard_seconds = shard_seconds
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._about: dict[str, str] = {}
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._verified: set[str] = set()
        self._recent: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._users = FolderUsers(folder / ".users", timeout=_LOCK_SECONDS)
        self._held = threading.local()
        self._ask(lambda index: self._find_shards())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except QframeError as second:
            logger.warning("the last entries were not written: %s", second.message)

    def close(self) -> None:
        """Write what is gathered, and let go of files."""
        try:
            self.flush()
        finally:
            self._index.close()
            self._users.close()
            with self._lock:
                self._open.clear()

    # -- writing ----------------------------------------------------------------------------------------------

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not in the cache, in order, each once."""
        unique = [key for key in dict.fromkeys(keys) if key not in self._pending]
        known = self._ask(lambda index: index.known(unique))
        return [key for key in unique if key not in known]

    def put(self, key: str, tensors: Mapping[str, Tensor], *, about: str = "") -> None:
        """Gather one entry; see `put_all`."""
        self.put_all({key: tensors}, about={key: about})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]], *, about: Mapping[str, str] | None = None) -> None:
        """Gather entries that belong in one shard; keys that are there already are left as they are.

        about: per key, what it was made of, in JSON, for people. ResourceError if the disk is full.
        """
        wanted = self.missing(entries)
        new = {key: {name: storable(tensor) for name, tensor in entries[key].items()} for key in wanted}
        size = sum(tensor.nbytes for tensors in new.values() for tensor in tensors.values())
        full = self._pending_bytes + size > self._shard_bytes or len(self._pending) + len(new) > _MOST_ENTRIES
        if self._pending and full:
            self.flush()
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending |= new
        self._about |= {key: about[key] for key in wanted if about and about.get(key)}
        self._pending_bytes += size
        if time.monotonic() - self._pending_since > self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Seal what is gathered into shards, and publish them."""
        while self._pending:
            part = self._take()
            self._publish(
                {key: self._pending[key] for key in part}, {k: self._about[k] for k in part if k in self._about}
            )
            for key in part:
                self._pending_bytes -= sum(tensor.nbytes for tensor in self._pending.pop(key).values())
                self._about.pop(key, None)

    def _take(self) -> list[str]:
        """The next gathered keys that fit in one shard; at least one."""
        taken: list[str] = []
        size = 0
        for key, tensors in self._pending.items():
            size += sum(tensor.nbytes for tensor in tensors.values())
            if taken and (size > self._shard_bytes or len(taken) == _MOST_ENTRIES):
                break
            taken.append(key)
        return taken

    def _publish(self, values: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, str]) -> str:
        name, data = make_shard(values, about)
        require_space(self._shards, len(data))
        write_file(self._shards / name, data)
        entries = read_header(self._shards / name).entries
        self._ask(lambda index: index.add(name, entries))
        return name

    # -- reading ----------------------------------------------------------------------------------------------

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, in memory of their own.

        The checksum is verified when an entry is first read. DamagedEntryError if it does not hold, CacheError if
        there is no such entry.
        """
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str]) -> list[dict[str, Tensor]]:
        """As `get`, for several keys at once."""
        entries = self.locate([key for key in dict.fromkeys(keys) if key not in self._pending])
        return [
            {name: tensor.clone() for name, tensor in self._pending[key].items()}
            if key in self._pending
            else self._read(entries[key])
            for key in keys
        ]

    def locate(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Where entries lie, with their tensors' names, dtypes and shapes; no tensor is read.

        CacheError names a key that is not there.
        """
        recent = self._recent
        found = {key: recent[key] for key in keys if key in recent}
        if unknown := [key for key in keys if key not in found]:
            asked = self._ask(lambda index: index.find(unknown))
            for key in unknown:
                if key not in asked:
                    raise CacheError(
                        f"{self.folder}: no entry {key[:16]}", "Build the cache again; only what lacks is made."
                    )
            if len(recent) + len(asked) > _MOST_RECENT:
                self._recent = {}
            self._recent.update(asked)
            found |= asked
        return found

    def stats(self) -> CacheStats:
        """Counts and bytes, of the shards that can be read."""
        shards = [name for name, damage in self._ask(Index.shards).items() if damage is None]
        sizes = [path.stat().st_size for name in shards if (path := self._shards / name).exists()]
        return CacheStats(self._ask(Index.count), len(sizes), sum(sizes))

    def _read(self, entry: Entry) -> dict[str, Tensor]:
        try:
            handle = self._handle(entry.shard)
        except FileNotFoundError:
            # Another process may have rewritten the shard without a damaged entry since we looked.
            self._ask(lambda index: self._find_shards())
            self._recent = {}
            entry = self.locate([entry.key])[entry.key]
            handle = self._handle(entry.shard)
        try:
            verify = entry.key not in self._verified
            tensors = {t.name: read_tensor(handle.fileno(), entry, t, verify=verify) for t in entry.tensors}
        except (ValueError, OSError) as error:
            raise DamagedEntryError(
                f"{self._shards / entry.shard}: entry {entry.key[:16]} is damaged: {error}",
                "Drop it from the cache, and it is encoded again.",
                entry.key,
            ) from error
        self._verified.add(entry.key)
        return tensors

    def _handle(self, shard: str) -> BinaryIO:
        """The open file of a shard. The last reader closes it: it may be in use while it is forgotten here."""
        with self._lock:
            handle = self._open.get(shard)
            if handle is None:
                handle = (self._shards / shard).open("rb", buffering=0)
                self._open[shard] = handle
                if len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
        return handle

    # -- care -------------------------------------------------------------------------------------------------

    def verify(self, progress: Progress = SILENT) -> list[Damage]:
        """Read everything, and list what is damaged. Nothing is changed."""
        damages: list[Damage] = []
        shards = self._ask(Index.shards)
        with progress.stage("verifying the cache", len(shards)) as stage:
            for shard, damage in sorted(shards.items()):
                damages += [Damage(shard, None, damage)] if damage else self._verify_shard(shard)
                stage.advance(1)
        return damages

    def _verify_shard(self, shard: str) -> Iterator[Damage]:
        path = self._shards / shard
        try:
            read_header(path)
        except FileNotFoundError:
            return  # rewritten by another process meanwhile
        except (ValueError, OSError) as error:
            yield Damage(shard, None, str(error))
        for entry in self._ask(lambda index: index.entries_of(shard)):
            self._verified.discard(entry.key)
            try:
                self._read(entry)
            except DamagedEntryError as error:
                yield Damage(shard, entry.key, str(error.__cause__))

    def drop(self, keys: Iterable[str]) -> int:
        """Take entries out, and return how many there were. Their shards are written anew without them."""
        with self._exclusive():
            found = self._ask(lambda index: index.find(list(dict.fromkeys(keys))))
            for shard in {entry.shard for entry in found.values()}:
                self._rewrite(shard, {entry.key for entry in found.values() if entry.shard == shard})
        return len(found)

    def repair(self, damages: Iterable[Damage]) -> None:
        """Take out what `verify` found; what is whole stays. The next build encodes what is missing then."""
        damages = list(damages)
        for shard in {damage.shard for damage in damages}:
            self.rewrite(shard, {d.key for d in damages if d.shard == shard and d.key is not None})

    def rewrite(self, shard: str, without: Collection[str]) -> None:
        """Put a new shard in the place of `shard`: with its whole entries, but neither those of `without` nor copies
        of what lies elsewhere. A process killed in between leaves the old shard, the new one, or both.
        """
        with self._exclusive():
            self._rewrite(shard, without)

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other process has this cache open. CacheError if one has."""
        return self._users.alone()

    def headers(self) -> Iterator[tuple[str, Header | None]]:
        """Every shard with its header, one at a time; None for one that cannot be read."""
        for shard in sorted(self._ask(Index.shards)):
            try:
                yield shard, read_header(self._shards / shard)
            except FileNotFoundError:
                continue  # rewritten by another process meanwhile
            except (ValueError, OSError):
                yield shard, None

    def keys_of(self, shard: str) -> set[str]:
        """The keys that are looked for in a shard."""
        return self._ask(lambda index: index.keys_of(shard))

    def file_of(self, shard: str) -> Path:
        return self._shards / shard

    def _rewrite(self, shard: str, without: Collection[str]) -> None:
        path = self._shards / shard
        kept: dict[str, dict[str, Tensor]] = {}
        for entry in self._ask(lambda index: index.entries_of(shard)):
            if entry.key not in without:
                self._verified.discard(entry.key)
                with contextlib.suppress(DamagedEntryError):  # damaged as well: it goes with the others
                    kept[entry.key] = self._read(entry)
        about: Mapping[str, str] = {}
        with contextlib.suppress(ValueError, OSError):
            about = read_header(path).about
        new = None
        entries: tuple[Entry, ...] = ()
        if kept:
            new, data = make_shard(kept, {key: text for key, text in about.items() if key in kept})
            require_space(self._shards, len(data))
            write_file(self._shards / new, data)
            with contextlib.suppress(FileNotFoundError):
                os.utime(
                    self._shards / new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns)
                )  # entries keep their age
            entries = read_header(self._shards / new).entries
        self._ask(lambda index: index.replace(shard, new, entries))
        self._verified -= set(without)
        self._recent = {}
        with self._lock:
            self._open.pop(shard, None)
        if new != shard:
            path.unlink(missing_ok=True)

    # -- digests of the data set's files ------------------------------------------------------------------------

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """See `DigestStore`."""
        return self._ask(lambda index: index.recall_digest(path, stamp))

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """See `DigestStore`."""
        self._ask(lambda index: index.remember_digests(rows))

    # -- index ------------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[Index], _T]) -> _T:
        """What the index answers; built again from the shards first if it is damaged."""
        try:
            return question(self._index)
        except IndexDamagedError as error:
            logger.warning("%s: damaged (%s); built again from the shards", self._index.path, error)
            self._index.delete()
            self._find_shards()
            return question(self._index)

    def _find_shards(self) -> None:
        """Let the index know the shards that are there, if the folder changed since it last looked."""
        stamp = self._shards.stat().st_mtime_ns
        if self._index.note(LISTED) == str(stamp):
            return
        with self._exclusive():
            clear_leftovers(self._shards)
            # In this order: a shard that is published in between is one we do not know, not one that vanished.
            known = self._index.shards()
            with os.scandir(self._shards) as listing:
                present = {item.name for item in listing if item.name.endswith(SUFFIX) and item.name[0] != "."}
            for name in sorted(present - known.keys()):
                try:
                    self._index.add(name, read_header(self._shards / name).entries)
                except FileNotFoundError:
                    continue
                except (ValueError, OSError) as error:
                    logger.warning("%s: %s; its entries will be made again", self._shards / name, error)
                    self._index.add_damaged(name, str(error))
            for name in known.keys() - present:
                self._index.remove(name)
            # A folder that changed just now may change again without its time stamp telling.
            if time.time_ns() - stamp > _SETTLED_NS:
                self._index.set_note(LISTED, str(stamp))

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Inside, no other process or thread lists or rewrites shards."""
        if getattr(self._held, "already", False):
            yield
            return
        with exclusive(self.folder / ".lock", self._busy, timeout=_LOCK_SECONDS):
            self._held.already = True
            try:
                yield
            finally:
                self._held.already = False

    def _busy(self) -> CacheError:
        return CacheError(
            f"{self.folder}: another process has been changing this cache for {_LOCK_SECONDS:.0f} s",
            "Wait until it is done, or end it.",
        )
