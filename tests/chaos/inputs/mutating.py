"""Changes bytes, texts and trees of JSON at random, in the ways in which files go wrong."""

from __future__ import annotations

import copy
import json
import reprlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e300, 3.7,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "two", "0", "NaN", "../x", "/etc/passwd", "/dev/zero",
    "\0", "\n", "\ud800", "\u202e", "\x1b[2J", "\u65e5\u672c", "null", "{}", "[]", [], {}, [[]], [None], [1, 2], ["a"],
    {"a": 1}, {"": None}, [{"a": []}],
)  # fmt: skip

_BREAKS = ("\r", "\r\n", "\u2028", "\0", "\ufeff", "\x1a", "\t", "\\", '"', "'", "{", "}", "[", "]", "=", ",", ":", "#")
_WORDS = (
    "nan",
    "inf",
    "1e999",
    "true",
    "null",
    "0x10",
    "1_000",
    "-",
    "9" * 5000,
    "[" * 2000,
    "{" * 300,
    "a." * 20,
    "é",
)


def odd_value(draw: Random) -> Any:
    """Draw a value that is seldom what is expected."""
    kind = draw.random()
    if kind < 0.06:
        return "x" * draw.choice((300, 5_000, 100_000))
    if kind < 0.1:
        return nested(draw.choice((20, 100, 300)))
    if kind < 0.13:
        return [draw.choice(_ODD)] * draw.choice((1_000, 20_000))
    if kind < 0.2:
        return draw.choice((1, -1)) * draw.randrange(2 ** draw.choice((8, 33, 70)))
    return copy.deepcopy(draw.choice(_ODD))


def nested(depth: int) -> Any:
    """Make lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutated_tree(draw: Random, tree: Any, changes: int | None = None) -> tuple[Any, str]:
    """Return a changed copy of a tree of JSON, and what was changed."""
    tree = copy.deepcopy(tree)
    told = []
    for _ in range(changes or draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            tree = odd_value(draw)
            told.append(f"all = {_short(tree)}")
            continue
        parent, key, path = draw.choice(places)
        told.append(_change(draw, parent, key, path, places))
    return tree, "; ".join(told)


def _change(draw: Random, parent: Any, key: Any, path: str, places: Sequence[tuple[Any, Any, str]]) -> str:
    kind, old = draw.random(), parent[key]
    if kind < 0.15:
        del parent[key]
        return f"without {path}"
    if kind < 0.25 and isinstance(parent, dict):
        new = draw.choice((f"{key}x", "", key.upper(), str(key)[:-1], "a.b", "\ud800", *list(parent)[:3]))
        parent[new] = parent.pop(key)
        return f"{path} called {new!a}"
    if kind < 0.35:
        other, name, where = draw.choice(places)
        parent[key] = (
            copy.deepcopy(other.get(name)) if isinstance(other, dict) else copy.deepcopy(draw.choice(other or [0]))
        )
        return f"{path} = {where}"
    if kind < 0.45:
        parent[key] = [old] if draw.random() < 0.5 else {"value": old}
        return f"{path} wrapped"
    if kind < 0.6 and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = draw.choice((old + 1, old - 1, -old, old * 2, old * 10**9, float(old), str(old), 0))
    elif kind < 0.6 and isinstance(old, str):
        parent[key] = mutated_text(draw, old)
    elif kind < 0.6 and isinstance(old, list) and old:
        parent[key] = draw.choice((old * 2, old[:-1], old[::-1], [*old, odd_value(draw)], old * 1000))
    else:
        parent[key] = odd_value(draw)
    return f"{path} = {_short(parent[key])}"


def _places(tree: Any, path: str = "") -> Any:
    """Yield each place in a tree as its parent, its key in it, and its path."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items[:200]:
        where = f"{path}.{key}"[:200]
        yield tree, key, where
        if path.count(".") < 8:
            yield from _places(value, where)


def mutated_text(draw: Random, text: str) -> str:
    """Change some characters or lines of a text."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        at = draw.randrange(len(text) + 1)
        line = draw.randrange(len(lines))
        kind = draw.randrange(9)
        if kind == 0:
            text = text[:at] + draw.choice(_BREAKS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + draw.randrange(1, 9) :]
        elif kind == 2:
            text = text[:at] + draw.choice(_WORDS) + text[at:]
        elif kind == 3:
            text = text[:at]
        elif kind == 4:
            text = "\n".join([*lines[:line], lines[draw.randrange(len(lines))], *lines[line:]])
        elif kind == 5:
            text = "\n".join([*lines[:line], *lines[line + 1 :]])
        elif kind == 6:
            text = text.replace(
                draw.choice(('"', "=", ",", " ", "\n", "1")), draw.choice(("", "'", "\u201c", "\r\n", "2"))
            )
        elif kind == 7:
            text = text[:at] + chr(draw.choice((0x41, 0x7F, 0x85, 0xA0, 0x2028, 0xFFFD, 0x1F600))) + text[at:]
        else:
            other = draw.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            text = "\n".join(lines)
        text = text[:200_000]
    return text


def mutated_bytes(draw: Random, data: bytes) -> tuple[bytes, str]:
    """Change some bytes of a file, and say how."""
    told = []
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        if draw.random() < 0.4:
            at = min(at, draw.randrange(64))  # headers are at the beginning
        count = draw.choice((1, 1, 2, 4, 8, 64))
        change = draw.choice(_CHANGES)
        data = change(draw, data, at, count)
        told.append(f"{change.__name__.strip('_')} {count} at {at}")
    return data, ", ".join(told)


def _flip(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + bytes(byte ^ 1 << draw.randrange(8) for byte in data[at : at + count]) + data[at + count :]


def _overwrite(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + draw.randbytes(min(count, len(data) - at)) + data[at + count :]


def _extreme(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * count + data[at + count :]


def _cut(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at]


def _delete(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + data[at + count :]


def _insert(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + draw.randbytes(count) + data[at:]


def _repeat(draw: Random, data: bytes, at: int, count: int) -> bytes:
    return data[:at] + data[at : at + count] * draw.choice((2, 50)) + data[at + count :]


_CHANGES: tuple[Callable[[Random, bytes, int, int], bytes], ...] = (
    _flip, _flip, _overwrite, _extreme, _cut, _delete, _insert, _repeat,
)  # fmt: skip


def json_bytes(draw: Random, tree: Any) -> bytes:
    """Write a tree as JSON, now and then in a way that few programs do."""
    try:
        text = json.dumps(tree, ensure_ascii=draw.random() < 0.9)
    except (RecursionError, ValueError):
        text = "[" * 3000 + "]" * 3000
    kind = draw.random()
    if kind < 0.04 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + ", " + text[1:]  # every key twice
    elif kind < 0.06:
        return text.encode("utf-16", "surrogatepass")
    elif kind < 0.08:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def mutated_json(draw: Random, tree: Any) -> tuple[bytes, str]:
    """Return the bytes of a JSON file that was changed in its tree, in its text or in its bytes."""
    kind = draw.random()
    if kind < 0.8:
        changed, told = mutated_tree(draw, tree)
        return json_bytes(draw, changed), told
    data = json.dumps(tree).encode()
    if kind < 0.9:
        return mutated_text(draw, data.decode()).encode("utf-8", "surrogatepass"), "its text"
    return mutated_bytes(draw, data)


def _short(value: Any) -> str:
    """Show a value, of which little need be seen."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
