"""Counts what a real card makes costly: copies between memories, waits of the host, and bytes that lie on a card."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[2]
_HERE = str(Path(__file__).parent)


class Meter:
    """What happened on all imitated cards of this process.

    Attributes:
        copies: How many tensors were copied, by direction: "to card", "to host", "card to card".
        bytes_copied: How many bytes were copied, by the same directions.
        waits: How often the host waited for a card, by reason and by the function of the project that asked for it,
            such as "item at qframe/train/loop.py:optimizer_step".
        now: The bytes that lie on each card, by the card's index.
        peak: The most bytes that lay on each card at once, since `reset_peak`.
    """

    def __init__(self) -> None:
        self.copies: collections.Counter[str] = collections.Counter()
        self.bytes_copied: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()
        self.now: collections.Counter[int] = collections.Counter()
        self.peak: collections.Counter[int] = collections.Counter()

    def copied(self, direction: str, tensor: torch.Tensor) -> None:
        """Count a copy of a tensor between two memories."""
        self.copies[direction] += 1
        self.bytes_copied[direction] += tensor.nbytes

    def waited(self, reason: str) -> None:
        """Count a wait of the host, under the function of the project that caused it."""
        self.waits[f"{reason} at {_asker()}"] += 1

    def took(self, card: int, size: int) -> None:
        """Count an allocation on a card."""
        self.now[card] += size
        self.peak[card] = max(self.peak[card], self.now[card])

    def gave_back(self, card: int, size: int) -> None:
        """Count the end of an allocation on a card."""
        self.now[card] -= size

    def reset_peak(self, card: int) -> None:
        """Let the peak of a card begin again at what lies on it now."""
        self.peak[card] = self.now[card]

    @contextmanager
    def counting_waits(self) -> Iterator[collections.Counter[str]]:
        """Return a context whose value holds, after the context, the waits that happened in it."""
        before, found = self.waits.copy(), collections.Counter[str]()
        yield found
        found.update(self.waits - before)


def _asker() -> str:
    """The innermost function of qframe or of a plugin that is on the stack; else of a test; else of any library."""
    frame, test, other = sys._getframe(2), None, None
    while frame is not None:
        file = frame.f_code.co_filename
        name = frame.f_code.co_name
        if not file.startswith(_HERE):
            try:
                path = Path(file).relative_to(_ROOT)
            except ValueError:
                other = other or f"{Path(file).name}:{name}"
            else:
                if path.parts[0] in ("qframe", "plugins"):
                    return f"{path}:{name}"
                if path.parts[0] == "tests":
                    test = test or f"{path}:{name}"
                else:
                    other = other or f"{path}:{name}"
        frame = frame.f_back
    return test or other or "an unknown place"


METER = Meter()
