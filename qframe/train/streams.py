"""Random numbers as a function of seed, step and slot, so that no state of a generator has to be stored.

A slot is the place of a sample in the batch of a whole optimizer step. A step draws the same numbers whether or not
the run was resumed before it, and however its batch is split.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed of 63 bits that is a function of `seed` and `names`."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A new CPU generator whose numbers are a function of `seed` and `names`."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
