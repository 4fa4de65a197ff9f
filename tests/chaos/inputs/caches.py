"""Caches: the index and the shards, damaged anywhere; what is read must be what was stored, or be refused."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from random import Random

import torch
import xxhash
from torch import Tensor

from qframe.cache import Cache
from tests.chaos.inputs.judging import Case, called, command
from tests.chaos.inputs.mutating import json_bytes, mutated_bytes, mutated_json, mutated_tree, odd_value

_TABLES = {
    "shards": ("id", "name", "damage"),
    "entries": ("key", "shard", "tensors"),
    "digests": ("path", "stamp", "digest"),
    "notes": ("name", "value"),
}


class Caches:
    """Spoils a small cache, and lets each command read, count, check, repair and prune it."""

    def __init__(self, folder: Path) -> None:
        self._whole = folder / "whole"
        self._cache = folder / "cache"
        torch.manual_seed(0)
        self._entries: dict[str, dict[str, Tensor]] = {}
        with Cache(self._whole) as cache:
            for number in range(3):
                entries = {
                    xxhash.xxh3_128(f"{number} {one}".encode()).hexdigest() * 2: _tensors(one) for one in range(3)
                }
                cache.put_all(entries, about={key: json.dumps({"kind": "pixels", "number": number}) for key in entries})
                cache.flush()
                self._entries |= entries
            cache._listing.ask(lambda index: index.remember_digests([("/x", [1, 2, 3], "d")]))
        for path in (self._whole / "shards").iterdir():
            os.utime(path, (1_700_000_000, 1_700_000_000))

    def case(self, draw: Random) -> Case:
        shutil.rmtree(self._cache, ignore_errors=True)
        shutil.copytree(self._whole, self._cache)
        told = []
        for _ in range(draw.choice((1, 1, 2))):
            try:
                told.append(draw.choice((self._spoil_index, self._spoil_index, self._spoil_shard))(draw))
            except (ValueError, KeyError, TypeError, RecursionError):
                told.append("nothing, it is spoilt already")
        about = "; ".join(told)
        folder = self._cache
        kind = draw.random()
        if kind < 0.35:
            return Case(f"read: {about}", lambda: called(self._read))
        if kind < 0.5:
            return Case(f"verify: {about}", lambda: command("cache", "verify", folder))
        if kind < 0.75:
            return Case(f"repair: {about}", lambda: command("cache", "verify", folder, "--repair"), self._repaired)
        if kind < 0.9:
            more = ["--json"] if kind < 0.8 else []
            return Case(f"stats: {about}", lambda: command("cache", "stats", folder, *more))
        more = ["--yes"] if kind < 0.95 else []
        return Case(
            f"prune: {about}", lambda: command("cache", "prune", "--folder", folder, "--older-than", "1", *more)
        )

    def _read(self) -> None:
        with Cache(self._cache) as cache:
            there = [key for key in self._entries if not cache.missing([key])]
            cache.locate(there)
            cache.stats()
            for key in there:
                found = cache.get(key)
                wanted = self._entries[key]
                assert found.keys() == wanted.keys(), "an entry with other tensors was read without a word"
                assert all(_same(found[name], wanted[name]) for name in wanted), "other values were read without a word"

    def _repaired(self, code: int) -> str | None:
        if code == 0 and command("cache", "verify", self._cache) != 0:
            return "it is damaged after the repair"
        return None if code or called(self._read) == 0 else "it cannot be read after the repair"

    def _spoil_index(self, draw: Random) -> str:
        file = self._cache / "index.sqlite"
        if file.is_dir():
            return "nothing"
        if not file.is_file() or draw.random() < 0.3:
            if draw.random() < 0.15:
                file.unlink(missing_ok=True)
                if draw.random() < 0.5:
                    file.mkdir(exist_ok=True)
                return "no index, or a folder"
            data, told = mutated_bytes(draw, file.read_bytes() if file.exists() else b"x")
            file.write_bytes(data)
            return f"index {told}"
        try:
            return self._change_row(draw, file)
        except (sqlite3.Error, OverflowError, ValueError, TypeError) as error:  # it is spoilt already
            return f"nothing ({error})"

    def _change_row(self, draw: Random, file: Path) -> str:
        with sqlite3.connect(file) as db:
            kind = draw.random()
            table = draw.choice(("entries", "entries", "shards", "notes", "digests"))
            column = draw.choice(_TABLES[table])
            if kind < 0.1:
                statement = draw.choice(
                    (
                        f"DROP TABLE {table}",
                        f"ALTER TABLE {table} RENAME TO x",
                        f"ALTER TABLE {table} RENAME COLUMN {column} TO x",
                        "PRAGMA user_version = 1",
                        "PRAGMA user_version = 9",
                        "PRAGMA journal_mode = WAL",
                        f"DELETE FROM {table}",
                        "PRAGMA user_version = 0",
                        "DROP INDEX entries_by_shard",
                    )
                )
                db.execute(statement)
                return statement
            if table == "entries" and kind < 0.6:
                key, tensors = draw.choice(db.execute("SELECT key, tensors FROM entries").fetchall() or [(b"", "[]")])
                changed, told = (
                    mutated_tree(draw, json.loads(tensors.rpartition(" ")[0])) if draw.random() < 0.8 else (None, "")
                )
                text = (
                    mutated_json(draw, json.loads(tensors.rpartition(" ")[0]))[0].decode("utf-8", "replace")
                    if changed is None
                    else json_bytes(draw, changed).decode("utf-8", "replace")
                )
                text += draw.choice(("", " " + tensors.rpartition(" ")[2]))
                db.execute("UPDATE entries SET tensors = ? WHERE key = ?", (text, key))
                return f"tensors {told}"
            value = odd_value(draw)
            value = (
                value
                if isinstance(value, int | float | str | bytes | None)
                else draw.choice((b"\x00\xff", b"", "../../x", json.dumps(value)))
            )
            db.execute(
                f"UPDATE {table} SET {column} = ? WHERE rowid = 1"
                if table == "shards"
                else f"UPDATE {table} SET {column} = ?",
                (value,),
            )
            return f"{table}.{column} = {value!a:.60}"

    def _spoil_shard(self, draw: Random) -> str:
        shards = self._cache / "shards"
        files = sorted(path for path in shards.iterdir() if path.is_file())
        if not files:
            return "nothing"
        file = draw.choice(files)
        kind = draw.random()
        if kind < 0.1:
            file.unlink()
            return "without a shard"
        if kind < 0.2:
            name = draw.choice(
                ("x.safetensors", ".hidden.safetensors", "0" * 32 + ".safetensors", "x.txt", "y\n.safetensors")
            )
            draw.choice(
                (
                    lambda: file.rename(shards / name),
                    lambda: (shards / name).mkdir(exist_ok=True),
                    lambda: (shards / name).write_bytes(b"x"),
                )
            )()
            return f"a file {name!r}"
        data = file.read_bytes()
        if kind < 0.55:
            data, told = mutated_bytes(draw, data)
            file.write_bytes(data)
            return f"shard {told}"
        # The header changes, and the file gets the name that goes with it: as another version might have written it.
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        if draw.random() < 0.5:
            inner = json.loads(header["__metadata__"]["qframe"])
            changed, told = mutated_tree(draw, inner)
            header["__metadata__"]["qframe"] = json_bytes(draw, changed).decode("utf-8", "replace")
            text = json.dumps(header).encode()
        else:
            text, told = mutated_json(draw, header)
        start = len(text).to_bytes(8, "little") + text
        file.unlink()
        (shards / f"{xxhash.xxh3_128(start).hexdigest()}.safetensors").write_bytes(start + data[8 + size :])
        return f"header {told}"


def _tensors(number: int) -> dict[str, Tensor]:
    return {
        "latents": torch.randn(4, 2, 2 + number),
        "embeds": torch.randn(3, 5).to(torch.bfloat16),
        "count": torch.tensor([number]),
    }


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
