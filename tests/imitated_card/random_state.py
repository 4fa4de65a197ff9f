"""The random numbers of each card: a state of its own, so that a card's draws do not move the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_STATES: dict[int, Tensor] = {}


def get(card: int) -> Tensor:
    """The state of a card's generator."""
    if card not in _STATES:
        seed(card, 0)
    return _STATES[card].clone()


def put(card: int, state: Tensor) -> None:
    """Set the state of a card's generator."""
    _STATES[card] = state.clone()


def seed(card: int, number: int) -> None:
    """Let a card's generator begin anew from a seed."""
    _STATES[card] = torch.Generator().manual_seed(number).get_state()


@contextmanager
def of(card: int) -> Iterator[None]:
    """A context in which torch's generator of the CPU draws the numbers of a card."""
    own = torch.default_generator.get_state()
    torch.default_generator.set_state(get(card))
    try:
        yield
    finally:
        _STATES[card] = torch.default_generator.get_state()
        torch.default_generator.set_state(own)
