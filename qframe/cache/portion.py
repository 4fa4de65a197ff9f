"""The portion of the work that one builder does, where several processes or machines fill one cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Self

import attrs

from qframe.errors import ConfigError


@attrs.frozen
class Portion:
    """The part of a data set that one builder encodes: portion `number` (from 1) of `count`.

    The portions of one data set are disjoint, and together they are all of it.

    Attributes:
        number: Which portion it is, from 1.
        count: How many portions there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the portion that a text such as "2/4" names. ConfigError if there is no such portion."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = (int(group) for group in match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"--shard: {text!r} is not a portion of the work", "Give I/N, from 1/N to N/N, one to each process."
            )
        return cls(number, count)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the portion of this process under torchrun (RANK of WORLD_SIZE); without torchrun it is all.

        ConfigError if these variables name no portion.
        """
        count = environment.get("WORLD_SIZE", "1")
        rank = environment.get("RANK", "0")
        if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
            raise ConfigError(f"RANK={rank!r} and WORLD_SIZE={count!r} name no portion of the work", "Unset both.")
        return cls(int(rank) + 1, int(count))

    def owns(self, index: int) -> bool:
        """Whether window `index` of the work, counted from 0, belongs to this portion."""
        return index % self.count == self.number - 1

    def stretches(self, total: int) -> Iterator[range]:
        """Split `range(total)` into one stretch for each portion, and yield them, this portion's own stretch first.

        Portions that hash the same pictures so begin at different places.
        """
        for turn in range(self.count):
            place = (self.number - 1 + turn) % self.count
            yield range(total * place // self.count, total * (place + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


ALL = Portion()
"""The portion that is all of the work."""
