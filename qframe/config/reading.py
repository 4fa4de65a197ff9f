"""Reads the layers that a user gives (a TOML file, values, `key=value` overrides), and refuses very large ones."""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli

from qframe.config.foreign import foreign_program, format_of
from qframe.config.layers import Key, Leaf, Tree, put
from qframe.config.strict import Problem
from qframe.errors import ConfigError
from qframe.files.text import decode_text

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
        _read_file(found_file(Path(path)), user)
    put(user, values, lambda key: ARGUMENT)
    for override in overrides:
        problems += _read_override(override, user)
    problems += _wrong_family(user)
    _keep_one_length(user)
    problems += _keep_one_way_to_data(user)
    if family is not None:
        user["family"] = Leaf(family, ARGUMENT)
    return user, problems


def _wrong_family(user: Tree) -> list[Problem]:
    """Report a family that is no text, also where it is overridden."""
    given = user.get("family")
    if given is None or (isinstance(given, Leaf) and isinstance(given.value, str)):
        return []
    return [Problem(("family",), "expected a string")]


def _keep_one_length(user: Tree) -> None:
    """Leave out the length of a run (steps or epochs) that a higher layer overrides by the other one.

    Where one layer gives both, both stay: the number of epochs counts, as the help of the keys says.
    """
    train = user.get("train")
    lengths = {name: train.get(name) for name in ("epochs", "max_steps")} if isinstance(train, dict) else {}
    ranks = {name: _rank(leaf.source) for name, leaf in lengths.items() if isinstance(leaf, Leaf)}
    if isinstance(train, dict) and len(set(ranks.values())) == 2:
        del train[min(ranks, key=ranks.__getitem__)]


def _keep_one_way_to_data(user: Tree) -> list[Problem]:
    """Leave out `data.sets` or `data.path`, whichever a higher layer overrides by the other one.

    Where one layer gives both, nobody can say which counts, and that is a problem.
    """
    data = user.get("data")
    given = data if isinstance(data, dict) else {}
    sets, path = given.get("sets"), given.get("path", given.get("use"))
    if not isinstance(sets, Leaf) or not isinstance(path, Leaf) or not sets.value:
        return []
    if _rank(sets.source) == _rank(path.source):
        return [Problem(("data", "sets"), "given together with data.path or data.use; give one of them")]
    for name in ("sets",) if _rank(sets.source) < _rank(path.source) else ("path", "use", "options"):
        given.pop(name, None)
    return []


def _rank(source: str) -> int:
    return {OVERRIDE: 2, ARGUMENT: 1}.get(source, 0)


BUNDLED = Path(__file__).parent / "bundled"
"""The configurations that ship with qframe: those in the folder configs/ of its repository."""


def bundled_files() -> dict[str, Path]:
    """Return the configurations that ship with qframe, by name."""
    return {file.stem: file for file in sorted(BUNDLED.glob("*.toml"))}


def found_file(path: Path) -> Path:
    """Return the file of a path; for a name like "qwen-edit-24gb" that is no file here, the bundled configuration."""
    named = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".toml")
    try:
        there = path.exists()
    except (OSError, ValueError):
        return path
    return path if there or not named else bundled_files().get(path.stem, path)


def _read_file(path: Path, tree: Tree) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a file", "--config takes a TOML file.")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        names = ", ".join(bundled_files())
        hint = f"Check the path of the configuration file. These come with qframe, and need no path: {names}."
        raise ConfigError(f"{path}: cannot be read ({reason})", hint) from error
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {LARGEST_FILE} bytes", "A configuration file is small.")
    try:
        toml = decode_text(raw)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", "A configuration is a TOML file.") from error
    _check_dots(toml, str(path))
    lines = _line_numbers(toml)
    try:
        tables = tomli.loads(toml)
        put(tree, tables, lambda key: _place(path, key, lines))
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise _not_toml(path, toml, error) from error
    program = None if "family" in tables else foreign_program(toml)
    if program is not None:
        raise ConfigError(f"{path}: this is {program}", _translation(path))


def _translation(path: Path) -> str:
    """Say how a file of another program becomes a configuration of qframe."""
    return (
        f"`qframe config convert {shlex.quote(str(path))}` makes a configuration of it; "
        "docs/reference/coming-from.md says which key stands for which of theirs."
    )


def _not_toml(path: Path, toml: str, error: Exception) -> ConfigError:
    """Return the error of a file that is not TOML, with the advice that fits what was found in it."""
    program, other = foreign_program(toml), format_of(toml)
    if other is not None:
        known = f"{program}, in {other}" if program else f"a {other} file"
        return ConfigError(f"{path}: this is {known}; a configuration of qframe is TOML", _translation(path))
    if program is not None:
        return ConfigError(f"{path}: this is {program}; a configuration of qframe is TOML", _translation(path))
    twice = _given_twice(toml)
    if twice is not None:
        key, first, second = twice
        return ConfigError(f"{path}:{second}: {key} is given twice", f"Line {first} has it, too: keep one of them.")
    number = getattr(error, "lineno", None)
    line = toml.split("\n")[number - 1] if isinstance(number, int) and number <= toml.count("\n") + 1 else ""
    where = f"{path}:{number}" if line else str(path)
    return ConfigError(f"{where}: not valid TOML: {getattr(error, 'msg', error)}", _advice_for(line or toml))


def _advice_for(line: str) -> str | None:
    """Say what editors and systems do to a line of TOML that makes it unreadable; None if nothing is recognised."""
    if re.search(r'"[^"]*\\[^"]*"', line):
        return f"In double quotes a backslash begins an escape: put a path in single quotes, {_example_path(line)}."
    if any(mark in line for mark in "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"):
        return "Curly quotes do not count in TOML: write \" or '."
    if re.search("[\u00a0\u2000-\u200f\u2028\u2029\u202f\ufeff]", line):
        return "The line has an invisible character or an unusual space: write it anew."
    if "\r" in line.rstrip("\r"):
        return "Lines end with a lone carriage return: save the file with line ends of Unix or Windows."
    if re.match(r"\s*[\w.-]+\s*=\s*(?:True|False|None|null|nil)\s*(?:#|$)", line):
        return "TOML writes true and false; a key without a value is left out."
    if re.match(r"\s*[\w.-]+\s*=\s*[A-Za-z./~][^\"'\[{]*$", line):
        return 'Put text in quotes: key = "value".'
    if re.match(r"\s*[\w.-]+\s*:", line):
        return "TOML writes key = value, with an equals sign."
    return None


def _example_path(line: str) -> str:
    found = re.search(r'"([^"]*)"?', line)
    return f"'{found[1]}'" if found else "'...'"


def _given_twice(toml: str) -> tuple[str, int, int] | None:
    """Return the first key or table that a text gives twice, with the numbers of both lines; None if there is none."""
    if re.search(r"^\s*\[\[", toml, re.MULTILINE):
        return None  # the tables of an array have the same keys
    seen: dict[Key, int] = {}
    for key, number in _keys(toml):
        if key in seen:
            return ".".join(key), seen[key], number
        seen[key] = number
    return None


def _check_dots(toml: str, where: str) -> None:
    # Reading a dotted key costs time and memory that grow with the square of its length: a key of 200 KB took 23 GB.
    # str.splitlines would also break a line at characters that TOML allows inside a quoted key.
    for number, line in enumerate(toml.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ConfigError(f"{where}:{number}: more than {MOST_DOTS} dots in a line", "Break the line.")


def _line_numbers(toml: str) -> dict[Key, int]:
    """Return the number of the line in which each key and table begins. Keys of inline tables are missing."""
    lines: dict[Key, int] = {}
    for key, number in _keys(toml):
        lines.setdefault(key, number)
    return lines


def _keys(toml: str) -> Iterator[tuple[Key, int]]:
    """Yield each key and table of a text with the number of its line. Keys of inline tables are left out."""
    table: Key = ()
    inside = False
    for number, line in enumerate(toml.split("\n"), 1):
        if not inside:
            before, sign, _ = line.partition("=")
            if line.lstrip().startswith("["):
                table = _split(line.strip(" \t\r[").partition("]")[0])
                yield table, number
            elif sign:
                yield (*table, *_split(before)), number
        if (line.count('"""') + line.count("'''")) % 2:
            inside = not inside


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
