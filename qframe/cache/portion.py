"""One builder's portion, where several processes or machines fill one cache."""

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
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """The portion that "2/4" means. ConfigError if there is no such portion."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = (int(group) for group in match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"--shard: {text!r} is not a portion of the work", "Give I/N, from 1/N to N/N, one to each process."
            )
        return cls(number, count)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The portion of this process under torchrun (RANK of WORLD_SIZE); everything elsewhere."""
        count = environment.get("WORLD_SIZE", "1")
        rank = environment.get("RANK", "0")
        if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
            raise ConfigError(f"RANK={rank!r} and WORLD_SIZE={count!r} name no portion of the work", "Unset both.")
        return cls(int(rank) + 1, int(count))

    def owns(self, index: int) -> bool:
        """Whether the `index`-th window of the work belongs to this portion."""
        return index % self.count == self.number - 1

    def stretches(self, total: int) -> Iterator[range]:
        """`range(total)` in as many stretches as there are portions, from this portion's own on."""
        for turn in range(self.count):
            place = (self.number - 1 + turn) % self.count
            yield range(total * place // self.count, total * (place + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


ALL = Portion()
"""All of the work."""
