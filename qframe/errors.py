"""The errors that qframe raises on purpose, and functions that word parts of their messages.

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
        exit_code: The exit code with which a command ends that raises the error.
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
    """The user's command or configuration is wrong: an unknown key, or a value of a wrong type or out of range."""

    exit_code = 2


class CompositionError(ConfigError):
    """The components of a configuration do not fit each other; the message shows the result of every check."""


class DataError(QframeError):
    """A data set, a row of a data set, or a picture cannot be used."""

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
    """A plugin cannot be loaded, or a class of it does not do what its interface in `qframe.interfaces` demands."""

    exit_code = 7


class UntrustedError(QframeError):
    """A file is refused before it is used, because reading it could run code or exhaust the machine."""

    exit_code = 7


def nearest(name: str, known: Iterable[str], count: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """Return the known names that `name` may be a misspelling of, the most similar first.

    Args:
        name: The name that may be misspelt.
        known: The names that exist.
        count: The most names that are returned.
        cutoff: How similar a name must be, from 0 to 1 (equal).
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known names that are similar to `name`, or "" if none is similar."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def excerpt(text: str) -> str:
    """Return the beginning of a prompt, of at most 60 characters, by which a message names the prompt."""
    return text if len(text) <= 60 else text[:57] + "..."


def bullet_list(lines: Iterable[str]) -> str:
    """Indent lines by two spaces and join them by newlines, for messages that list several problems."""
    return "\n".join(f"  {line}" for line in lines)
