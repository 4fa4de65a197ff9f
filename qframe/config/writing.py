"""Writes a configuration as commented TOML, and never over a file that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from qframe.errors import ConfigError
from qframe.files.disk import disk_errors, make_folder

SCHEMA_LINE = "#:schema ./qframe.schema.json"
"""The first line of a written configuration, by which editors find the schema of its keys."""


def assign(key: str, value: Any, comment: str = "") -> str:
    """Return a line of TOML; without a value, the line is a comment that shows the key."""
    line = tomli_w.dumps({key: value}).strip() if not isinstance(value, Mapping) else f"{key} = {inline(value)}"
    line = " ".join(part.strip() for part in line.splitlines())
    return f"{line}  # {printable(comment)}" if comment else line


def inline(table: Mapping[str, Any]) -> str:
    """Return a table as TOML on one line."""
    return "{ " + ", ".join(assign(key, value) for key, value in table.items()) + " }"


def commented(lines: Sequence[str]) -> list[str]:
    """Return lines of text as comments. What TOML does not allow in a comment becomes a question mark."""
    return [f"# {printable(line)}".rstrip() for text in lines for line in text.splitlines()]


def printable(text: str) -> str:
    """Return a text with a question mark for each character that does not print."""
    return "".join(character if character.isprintable() else "?" for character in text)


def create_file(path: Path, text: str) -> None:
    """Write a new file. Raises ConfigError if there is a file already, also if it appears meanwhile."""
    with disk_errors(path, "--output"):
        make_folder(path.parent, "--output")
        try:
            stream = path.open("x", encoding="utf-8")
        except FileExistsError as error:
            raise ConfigError(f"{path}: there is a file already", "Give another --output, or move it away.") from error
        try:
            with stream:
                stream.write(text)
        except OSError:
            path.unlink(missing_ok=True)  # half a configuration is none
            raise
