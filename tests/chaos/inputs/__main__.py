"""Try random and mutated files of every kind that qframe reads, and print what ends badly.

python -m tests.chaos.inputs                                     1000 cases of each target
python -m tests.chaos.inputs --target loras --cases 10000 --seed 3
python -m tests.chaos.inputs --target loras --seed 3 --first 812 --cases 1    one case again
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.chaos.inputs.targets import TARGETS, try_cases

_SHOWN = 40


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos.inputs", description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="repeatable; by default all")
    parser.add_argument("--cases", type=int, default=1000, help="cases for each target")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)  # everything is tiny, and threads only wait for one another
    wrong = 0
    say = partial(print, flush=True)
    for name in given.target or TARGETS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            tally = try_cases(name, Path(scratch) / name, first=given.first, count=given.cases, seed=given.seed)
        for number, text in list(tally.wrong.items())[:_SHOWN]:
            say(f"--- {name}, case {number} of seed {given.seed}: {text}")
        codes = ", ".join(f"{count} with {code}" for code, count in sorted(tally.codes.items()))
        took = time.monotonic() - started
        say(f"{name}: {given.cases} cases ({codes}), {len(tally.wrong)} ended badly, {took:.0f} s")
        if tally.wrong:
            say(f"  they are {', '.join(map(str, list(tally.wrong)[:40]))}")
        wrong += len(tally.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
