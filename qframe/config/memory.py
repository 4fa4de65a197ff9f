"""Reads amounts of memory as people write them, for the key `memory`. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

import attrs

AUTO = "auto"

_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def memory_bytes(text: str) -> int:
    """Return the bytes that a text such as "24GB" (24 times 10^9 bytes) or "16 GiB" (16 times 2^30) stands for.

    Raises:
        ValueError: It stands for none, or for less than a byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ValueError(f'expected "{AUTO}" or an amount such as "24GB" or "16GiB", got {text!r}')
    return size


def is_memory(instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    """Refuse a value of the key `memory` that is no amount."""
    if value is not None and value != AUTO:
        memory_bytes(value)
