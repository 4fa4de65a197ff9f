"""Read cached examples of a published model's sizes, against reading the same bytes raw.

python -m tests.bench.cache_read
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from qframe.cache import Cache, CachedExamples, ExampleKeys
from qframe.cache.bench import ReadPace, read_pace

SIZES = {"1024 x 1024": (128, 1400, 16), "512 x 512": (64, 400, 48), "256 x 256": (32, 150, 96)}
"""Side of the latents, tokens of the prompt with its picture (3584 wide), examples. bfloat16."""


def filled(folder: Path, side: int, tokens: int, count: int) -> CachedExamples:
    """An edit data set: a target, a reference and a caption each. The values do not matter, their bytes do."""
    keys = []
    generator = torch.Generator().manual_seed(0)
    with Cache(folder) as cache:
        for number in range(count):
            target, reference, text = (f"{3 * number + part:064x}" for part in range(3))
            for key in (target, reference):
                cache.put(key, {"latents": torch.randn(16, side, side, generator=generator).bfloat16()})
            cache.put(text, {"embeds": torch.randn(tokens, 3584, generator=generator).bfloat16()})
            keys.append(ExampleKeys(target, (reference,), text, None, None))
    return CachedExamples(Cache(folder), [str(number) for number in range(count)], keys)


def measure(folder: Path, side: int, tokens: int, count: int, *, repeats: int = 5) -> ReadPace:
    return read_pace(filled(folder, side, tokens, count), repeats=repeats)


def main() -> int:
    for name, (side, tokens, count) in SIZES.items():
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(Path(scratch), side, tokens, count)
        for when, pace in (("first", found.first), ("later", found.later)):
            ratio = pace.of(found.raw)
            print(  # noqa: T201 (a program)
                f"{name}, {found.bytes / 1e6:.1f} MB each, {when}: {1 / pace.wall:.0f} examples/s, raw "
                f"{1 / found.raw.wall:.0f}/s; ratio {ratio.wall:.2f} wall, {ratio.processor:.2f} processor"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
