"""The errors that qframe raises on purpose, and helpers that word their messages.

Each error says what happened and, where that is known, what to do next. The command line prints it as one message and
ends with the error's exit code; see docs/reference/exit-codes.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class QframeError(Exception):
    """An error that a user can do something about.

    Attributes:
        exit_code: The exit code of the command that the error ends.
        message: What is wrong, and where.
        hint: What to do next; None where there is no advice.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ConfigError(QframeError):
    """A command or a configuration is wrong: an unknown key, a value of a wrong type or out of range."""

    exit_code = 2


class CompositionError(ConfigError):
    """Components do not fit each other; the message holds the table of all checks."""


class DataError(QframeError):
    """A data set, a row of it or a picture cannot be used."""

    exit_code = 3


class CacheError(QframeError):
    """A cache is damaged, or does not belong to this run."""

    exit_code = 3


class WeightsError(QframeError):
    """Files of weights cannot be used: a model folder, a LoRA file, or a checkpoint of a training run."""

    exit_code = 4


class NumericsError(QframeError):
    """A loss, a gradient or latents are not finite."""

    exit_code = 5


class ResourceError(QframeError):
    """There is not enough memory, disk space or another resource."""

    exit_code = 6


class PluginError(QframeError):
    """A plugin cannot be loaded, or does not do what its interface says."""

    exit_code = 7


class UntrustedError(QframeError):
    """An input could run code or exhaust the machine; it is refused before it is used."""

    exit_code = 7


def nearest(name: str, known: Iterable[str], count: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """The known names that `name` may be a misspelling of, the most similar first.

    Args:
        count: The most names that are returned.
        cutoff: How similar a name must be, from 0 to 1 (equal).
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that has just named `name`, with similar known names; "" where no known name is similar."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def bullet_list(lines: Iterable[str]) -> str:
    """Lines below one another and indented, for messages with several problems."""
    return "\n".join(f"  {line}" for line in lines)
