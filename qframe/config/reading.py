"""Reads the layers that a user gives (a TOML file, values, `key=value` overrides), and refuses very large ones."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli

from qframe.config.layers import Key, Leaf, Tree, put
from qframe.config.strict import Problem
from qframe.errors import ConfigError

LARGEST_FILE = 256 * 1024
MOST_DOTS = 32

ARGUMENT = "argument"
OVERRIDE = "--set"


def read_user(
    path: str | Path | None, family: str | None, overrides: Iterable[str], values: Mapping[str, Any]
) -> tuple[Tree, list[Problem]]:
    """Read everything that a user gives into one tree.

    Args:
        path: A TOML file.
        family: The name of the family, which overrides everything else.
        overrides: Texts "key=value" with a dotted key, which override `values`.
        values: Nested tables, which override the file.

    Returns:
        The tree, and a problem for each override that cannot be read.

    Raises:
        ConfigError: The file cannot be read, is too large or is not valid TOML.
    """
    problems: list[Problem] = []
    user: Tree = {}
    if path is not None:
        _read_file(Path(path), user)
    put(user, values, lambda key: ARGUMENT)
    for override in overrides:
        problems += _read_override(override, user)
    if family is not None:
        user["family"] = Leaf(family, ARGUMENT)
    return user, problems


def _read_file(path: Path, tree: Tree) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a file", "--config takes a TOML file.")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason})", "Check the path of the configuration file.") from error
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {LARGEST_FILE} bytes", "A configuration file is small.")
    try:
        toml = raw.decode("utf-8")
        _check_dots(toml, str(path))
        tables = tomli.loads(toml)
        lines = _line_numbers(toml)
        put(tree, tables, lambda key: _place(path, key, lines))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _check_dots(toml: str, where: str) -> None:
    # Reading a dotted key costs time and memory that grow with the square of its length: a key of 200 KB took 23 GB.
    # str.splitlines would also break a line at characters that TOML allows inside a quoted key.
    for number, line in enumerate(toml.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ConfigError(f"{where}:{number}: more than {MOST_DOTS} dots in a line", "Break the line.")


def _line_numbers(toml: str) -> dict[Key, int]:
    """Return the number of the line in which each key and table begins. Keys of inline tables are missing."""
    lines: dict[Key, int] = {}
    table: Key = ()
    inside = False
    for number, line in enumerate(toml.split("\n"), 1):
        if not inside:
            before, sign, _ = line.partition("=")
            if line.lstrip().startswith("["):
                table = _split(line.strip(" \t\r[").partition("]")[0])
                lines.setdefault(table, number)
            elif sign:
                lines.setdefault((*table, *_split(before)), number)
        if (line.count('"""') + line.count("'''")) % 2:
            inside = not inside
    return lines


def _split(dotted: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _place(path: Path, key: Key, lines: Mapping[Key, int]) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{path}:{lines[key[:length]]}"
    return str(path)


def _read_override(override: str, tree: Tree) -> list[Problem]:
    dotted, sign, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not sign or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in key) or len(key) > MOST_DOTS:
        shown = override if len(override) <= 60 else override[:60] + "..."
        return [Problem((OVERRIDE,), f"expected key=value with a dotted key, got {shown!r}")]
    if len(override.encode("utf-8", "surrogatepass")) > LARGEST_FILE:
        return [Problem(key, f"{OVERRIDE} is larger than {LARGEST_FILE} bytes")]
    value: Any = _value_of(text)
    for name in reversed(key):
        value = {name: value}
    put(tree, value, lambda _: OVERRIDE)
    return []


def _value_of(text: str) -> Any:
    """Return the value of the text after "=": what TOML reads it as, or the text itself if it is not TOML."""
    if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
        return text
    try:
        tables = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tables["value"] if list(tables) == ["value"] else text
