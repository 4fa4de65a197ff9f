"""Every error that qframe raises on purpose: what happened, and what to do next.

The command line turns these into one message and an exit code; see docs/reference/exit-codes.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class QframeError(Exception):
    """An error a user can act on: `message` names the culprit, `hint` the next step."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ConfigError(QframeError):
    """Usage or configuration: an unknown key, a wrong type, a value out of range."""

    exit_code = 2


class CompositionError(ConfigError):
    """Components that do not fit each other; the message is the whole table."""


class DataError(QframeError):
    """A data set, a row or a picture that cannot be used."""

    exit_code = 3


class CacheError(QframeError):
    """A cache that is damaged or does not belong to this run."""

    exit_code = 3


class WeightsError(QframeError):
    """Files of weights that cannot be used: a model folder, a LoRA file, or a checkpoint of a training run."""

    exit_code = 4


class NumericsError(QframeError):
    """A loss, gradient or latent that is not finite."""

    exit_code = 5


class ResourceError(QframeError):
    """Not enough memory, disk or another resource."""

    exit_code = 6


class PluginError(QframeError):
    """A plugin that cannot be loaded, or breaks the contract."""

    exit_code = 7


class UntrustedError(QframeError):
    """Input that could run code or exhaust the machine, refused before it is used."""

    exit_code = 7


def bullet_list(lines: Iterable[str]) -> str:
    """`lines` one under the other, as the messages with several problems print them."""
    return "\n".join(f"  {line}" for line in lines)
