"""Reads files with one JSON object per line (JSON lines), such as tables of records and lists of pictures to sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qframe.data.problems import Problems
from qframe.files.text import decode_text

_LONGEST_LINE = 1_000_000
"""The most bytes that one line may have."""


def json_lines(path: Path, problems: Problems, where: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) for every line of a file that holds a JSON object. Lines are counted from 1.

    Empty lines are skipped. A line that holds no JSON object is skipped too, and adds a problem. Reading ends at a line
    of more than 1000000 bytes.

    Args:
        path: The file to read.
        problems: The list to which problems are added.
        where: Returns, for the number of a line, the text by which a problem names the line.
    """
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                problems.add(where(number), f"longer than {_LONGEST_LINE} bytes; the rest was not read")
                return
            try:
                text = decode_text(line).strip()
                if text:
                    yield number, json_object(text)
            except ValueError as error:
                problems.add(where(number), str(error))


def json_object(text: str) -> dict[str, Any]:
    """Parse a text as one JSON object, and return the object.

    Raises:
        ValueError: The text is not valid JSON, is not an object, or names a key twice; the message says which.
    """
    value = json_value(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object {{...}}, got {type(value).__name__}")
    return value


def json_value(text: str) -> Any:
    """Parse a text as JSON. Raises ValueError if it is not valid JSON, or an object names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found
