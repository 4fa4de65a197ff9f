"""Randomness as a function of (seed, step, slot), so that no generator's state ever has to be stored.

A step draws the same numbers whether the run came this far in one go, was resumed, or splits its batch
differently: a slot is a place in the global batch of an optimizer step.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of these names."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator of its own for these names."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
