"""Compare random calls of qframe with the same calls of diffusers, and print what differs.

python -m tests.parity                                       30 calls of each family
python -m tests.parity --family qwen-inpaint --cases 300 --seed 2
python -m tests.parity --family qwen-inpaint --seed 2 --first 17 --cases 1     one call again
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

from tests.parity.comparing import compare_family
from tests.parity.pipelines import tiny_model
from tests.qwen.calls import UPSTREAM

_SHOWN = 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=UPSTREAM, action="append", help="repeatable; by default all")
    parser.add_argument("--cases", type=int, default=30, help="calls of each family")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)  # everything is tiny, and threads only wait for one another
    say, wrong = partial(print, flush=True), 0
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_model(Path(scratch) / "model")
        for name in given.family or UPSTREAM:
            started = time.monotonic()
            found = compare_family(name, model, first=given.first, count=given.cases, seed=given.seed)
            for number, text in list(found.different.items())[:_SHOWN]:
                say(f"--- call {number} of seed {given.seed}: {text}")
            say(
                f"{name}: {found.cases} calls, {found.refused} refused by both, {len(found.different)} different, "
                f"latents up to {found.largest:.1g} apart, {time.monotonic() - started:.0f} s"
            )
            if found.different:
                say(f"  they are {', '.join(map(str, list(found.different)[:40]))}")
            wrong += len(found.different)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
