"""What can be tried, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Protocol

import attrs

from tests.chaos.inputs.caches import Caches
from tests.chaos.inputs.checkpoints import Checkpoints
from tests.chaos.inputs.configs import Configs
from tests.chaos.inputs.judging import Case, judged
from tests.chaos.inputs.loras import Loras
from tests.chaos.inputs.models import Models
from tests.chaos.inputs.pictures import Pictures
from tests.chaos.inputs.records import Records


class Target(Protocol):
    """Makes cases from a generator of random numbers. A target works in a folder of its own."""

    def case(self, draw: Random) -> Case:
        """Return the next case, with its files written."""


TARGETS: dict[str, Callable[[Path], Target]] = {
    "caches": Caches,
    "checkpoints": Checkpoints,
    "configs": Configs,
    "loras": Loras,
    "models": Models,
    "pictures": Pictures,
    "records": Records,
}


@attrs.define(eq=False)
class Tally:
    """What came of the cases of a target.

    Attributes:
        codes: How many cases ended with each exit code.
        wrong: What is wrong with those that ended badly, by the number of the case.
    """

    codes: Counter[int] = attrs.field(factory=Counter)
    wrong: dict[int, str] = attrs.field(factory=dict)


def try_cases(name: str, folder: Path, *, first: int = 0, count: int, seed: int = 0) -> Tally:
    """Try `count` cases of a target from number `first` on, in a new folder.

    A case depends on the seed and on its number alone, so that it can be tried again alone.
    """
    folder.mkdir()
    target = TARGETS[name](folder)
    tally = Tally()
    for number in range(first, first + count):
        code, wrong = judged(target.case(Random(f"{seed} {name} {number}")))
        tally.codes[code] += 1
        if wrong is not None:
            tally.wrong[number] = wrong
    return tally
