"""The cache's index: an SQLite file that tells which shard holds which key, and can be rebuilt from the shards."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from pathlib import Path

from qframe.cache.shards import Entry, StoredTensor, is_sound
from qframe.errors import CacheError, ResourceError
from qframe.files.digests import Stamp

LISTED = "shards folder as it was when it was listed"
"""The name of the note that holds the modification time, in ns, that the folder of shards had when it was listed."""

_VERSION = 3
_BUSY_SECONDS = 120.0
_CHUNK = 500  # SQLite takes at least 999 parameters in a statement
_TABLES = """
CREATE TABLE shards (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, damage TEXT);
CREATE TABLE entries (key BLOB PRIMARY KEY, shard INTEGER NOT NULL, tensors TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE digests (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_IS_KNOWN = "EXISTS (SELECT 1 FROM shards s WHERE s.id = e.shard)"
_BY_SHARD = "CREATE INDEX entries_by_shard ON entries (shard)"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


class IndexDamagedError(Exception):
    """The index file is damaged or of another version; the caller must delete it and build it again from the shards."""


class Index:
    """The index of one cache. Several processes and threads may use it at once.

    A process that was forked from one that uses the index opens a connection of its own. Every method that reads or
    writes the index raises IndexDamagedError if the file must be built again, ResourceError if the disk is full, and
    CacheError if the file cannot be used for another reason.

    Attributes:
        path: The SQLite file.
    """

    def __init__(self, path: Path) -> None:
        """Remember the path of the SQLite file, without opening it yet."""
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the connection to the SQLite file; the next call of another method opens a new one."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def delete(self) -> None:
        """Delete the SQLite file; the next call of another method creates an empty one."""
        self.close()
        for suffix in ("", "-journal"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def shards(self) -> dict[str, str | None]:
        """Return all shards of the index: by file name, the fault of a header that cannot be read, else None."""
        with self._database() as db:
            return dict(db.execute("SELECT name, damage FROM shards"))

    def add(self, shard: str, entries: Iterable[Entry]) -> None:
        """Add a shard and its entries. A key that the index knows already still refers to the shard that it had."""
        with self._database() as db:
            number = self._number(db, shard, None)
            rows = ((bytes.fromhex(entry.key), number, _pack(entry)) for entry in entries)
            db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)

    def add_damaged(self, shard: str, damage: str) -> None:
        """Add a shard whose header cannot be read, without entries. `damage` is the reason, as text."""
        with self._database() as db:
            self._number(db, shard, damage)

    def remove(self, shard: str) -> None:
        """Remove a shard and its entries from the index."""
        self.replace(shard, None, ())

    def replace(self, shard: str, new: str | None, entries: Iterable[Entry]) -> None:
        """Remove a shard and its entries, and add the shard `new` with `entries` unless `new` is None.

        A key of `entries` that the index knew in a third shard refers to `new` afterwards.
        """
        with self._database() as db:
            db.execute("DELETE FROM entries WHERE shard = (SELECT id FROM shards WHERE name = ?)", (shard,))
            db.execute("DELETE FROM shards WHERE name = ?", (shard,))
            if new is not None:
                number = self._number(db, new, None)
                rows = [(bytes.fromhex(entry.key), number, _pack(entry)) for entry in entries]
                db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return where entries lie, by key. Keys that the index does not know are left out."""
        found: dict[str, Entry] = {}
        with self._database() as db:
            for start in range(0, len(keys), _CHUNK):
                chunk = [bytes.fromhex(key) for key in keys[start : start + _CHUNK]]
                marks = ",".join("?" * len(chunk))
                rows = db.execute(
                    "SELECT e.key, s.name, e.tensors FROM entries e LEFT JOIN shards s ON s.id = e.shard "
                    f"WHERE e.key IN ({marks})",
                    chunk,
                )
                for key, shard, tensors in rows:
                    found[key.hex()] = _unpack(key.hex(), shard, tensors)
        return found

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that have an entry in the index."""
        found: set[str] = set()
        with self._database() as db:
            for start in range(0, len(keys), _CHUNK):
                chunk = [bytes.fromhex(key) for key in keys[start : start + _CHUNK]]
                marks = ",".join("?" * len(chunk))
                rows = db.execute(f"SELECT key, {_IS_KNOWN} FROM entries e WHERE key IN ({marks})", chunk)
                for key, in_shard in rows:
                    if not in_shard:
                        raise IndexDamagedError(f"the row of entry {key.hex()[:16]} names no shard")
                    found.add(key.hex())
        return found

    def check(self) -> None:
        """Check that every entry lies in a shard that the index knows. No shard is read."""
        with self._database() as db:
            lost = db.execute(f"SELECT count(*) FROM entries e WHERE NOT {_IS_KNOWN}").fetchone()[0]
        if lost:
            raise IndexDamagedError(f"{lost} rows of entries name no shard")

    def entries_of(self, shard: str) -> list[Entry]:
        """Return the entries that the index finds in `shard`, without copies that it finds in other shards."""
        with self._database() as db:
            rows = db.execute(
                "SELECT key, tensors FROM entries WHERE shard = (SELECT id FROM shards WHERE name = ?)", (shard,)
            )
            return [_unpack(key.hex(), shard, tensors) for key, tensors in rows]

    def keys_of(self, shard: str) -> set[str]:
        """Return the keys of the entries that the index finds in `shard`."""
        with self._database() as db:
            rows = db.execute("SELECT key FROM entries WHERE shard = (SELECT id FROM shards WHERE name = ?)", (shard,))
            return {row[0].hex() for row in rows}

    def count(self) -> int:
        """Return the number of entries in the index."""
        with self._database() as db:
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def note(self, name: str) -> str | None:
        """Return the text that `set_note` stored under a name, or None if there is none."""
        with self._database() as db:
            row = db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Store a text under a name, in place of the text that was stored there before."""
        with self._database() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest stored for the file at `path` if it was stored with the same stamp, else None."""
        with self._database() as db:
            row = db.execute("SELECT stamp, digest FROM digests WHERE path = ?", (path,)).fetchone()
            return str(row[1]) if row is not None and row[0] == json.dumps(stamp) else None

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Store digests of files, given as rows of path, stamp and digest."""
        with self._database() as db:
            values = [(path, json.dumps(stamp), digest) for path, stamp, digest in rows]
            db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", values)

    @staticmethod
    def _number(db: sqlite3.Connection, shard: str, damage: str | None) -> int:
        db.execute("INSERT OR IGNORE INTO shards (name, damage) VALUES (?, ?)", (shard, damage))
        return int(db.execute("SELECT id FROM shards WHERE name = ?", (shard,)).fetchone()[0])

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, inside one transaction."""
        with self._lock:
            try:
                db = self._open()
                with db:
                    yield db
            except UnicodeDecodeError as error:  # of a text in the file that is none, also in SQLite's own message
                raise IndexDamagedError(str(error)) from error
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
                if code in _DAMAGED:
                    raise IndexDamagedError(str(error)) from error
                if code == sqlite3.SQLITE_FULL:
                    raise ResourceError(f"{self.path}: the disk is full", "Free some space.") from error
                raise CacheError(
                    f"{self.path}: the index of the cache cannot be used ({error})",
                    "Check that the folder can be written, and that no other process holds the file.",
                ) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        # A connection must not be used after a fork: the parent's is dropped without closing it.
        db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level="IMMEDIATE")
        db.execute("PRAGMA synchronous = NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version < _VERSION:
            self._create(db)
        elif version != _VERSION:
            db.close()
            raise IndexDamagedError(f"version {version}, expected {_VERSION}")
        self._connection, self._process = db, os.getpid()
        return db

    @staticmethod
    def _create(db: sqlite3.Connection) -> None:
        # Two processes may begin an index at once: the second one finds the tables.
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _TABLES.split(";"):
                db.execute(statement)
        if version < 2:
            db.execute(_BY_SHARD)  # version 1 looked through all entries for those of a shard
        if version in (1, 2):  # their rows have no checksum
            db.create_function("checksum", 2, lambda key, text: _checksum(key.hex(), text), deterministic=True)
            db.execute("UPDATE entries SET tensors = tensors || ' ' || checksum(key, tensors)")
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")


def _pack(entry: Entry) -> str:
    """The tensors of an entry as JSON, with a checksum behind it."""
    rows = [[t.name, t.dtype, t.shape, t.begin, t.end, t.checksum] for t in entry.tensors]
    text = json.dumps(rows, separators=(",", ":"))
    return f"{text} {_checksum(entry.key, text)}"


def _unpack(key: str, shard: object, packed: object) -> Entry:
    """The entry of a row. Raises IndexDamagedError if the row is not one that `_pack` made."""
    try:
        if not isinstance(packed, str):
            raise ValueError(f"it holds a {type(packed).__name__}, not text")
        text, _, found = packed.rpartition(" ")
        if found != _checksum(key, text):
            raise ValueError("not what was stored")
        rows = json.loads(text)
        stored = tuple(StoredTensor(n, d, tuple(map(index, s)), index(b), index(e), c) for n, d, s, b, e, c in rows)
        if not stored or not isinstance(shard, str) or "/" in shard or not all(map(is_sound, stored)):
            raise ValueError("not what was stored")
    except (ValueError, TypeError, RecursionError) as error:
        raise IndexDamagedError(f"the row of entry {key[:16]} is broken: {error}") from error
    return Entry(key, shard, stored)


def _checksum(key: str, text: str) -> str:
    return f"{zlib.crc32(f'{key} {text}'.encode()):08x}"
