"""Splits the work of filling one cache between several processes or machines, so that each encodes one portion."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Self

import attrs

from qframe.errors import ConfigError


@attrs.frozen
class Portion:
    """The part of the work that one process does, where `count` processes fill one cache together.

    No two portions overlap, and all `count` portions together are the whole work.

    Attributes:
        number: The number of this portion, from 1 to `count`.
        count: The number of portions.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the portion that a text such as "2/4" (the second of four) names.

        Raises:
            ConfigError: The text is not of this form, or the first number is not between 1 and the second.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = (int(group) for group in match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"--shard: {text!r} is not a portion of the work", "Give I/N, from 1/N to N/N, one to each process."
            )
        return cls(number, count)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the portion of this process under torchrun: portion RANK + 1 of WORLD_SIZE.

        Without these environment variables, the portion is all of the work.

        Raises:
            ConfigError: A variable is no whole number, or RANK is not below WORLD_SIZE.
        """
        count = environment.get("WORLD_SIZE", "1")
        rank = environment.get("RANK", "0")
        if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
            raise ConfigError(f"RANK={rank!r} and WORLD_SIZE={count!r} name no portion of the work", "Unset both.")
        return cls(int(rank) + 1, int(count))

    def owns(self, index: int) -> bool:
        """Whether this portion includes the window of this number, counted from 0 (see `encoding.windows`)."""
        return index % self.count == self.number - 1

    def stretches(self, total: int) -> Iterator[range]:
        """Split `range(total)` into `count` stretches of about equal length, and yield all of them, in a circle.

        The circle begins at the stretch of this portion's number. Processes that all go through the same pictures
        therefore begin at different places.
        """
        for turn in range(self.count):
            place = (self.number - 1 + turn) % self.count
            yield range(total * place // self.count, total * (place + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


ALL = Portion()
"""The portion of a process that does all of the work alone: 1/1."""
