"""A few slots on a device that the blocks of a network take turns in, each copied there ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qframe.compose.streaming.lane import Lane, Slot
from qframe.compose.streaming.weights import Weights

SLOTS = 2
"""How many slots there are: one for the block that computes, and one for the block that comes next.

The copy into the second slot begins as soon as the block that used it has computed, so that a third slot would not make
the bus busier.
"""


class Ring:
    """Copies the weights of blocks into slots, and predicts which block comes next.

    In a backward pass that recomputes blocks they come in reverse order. Which block follows another one is at first
    guessed from their order, and then remembered for each kind of pass: a text encoder leaves out its vision tower
    where there are no pictures.

    Attributes:
        weights: The weights of each streamed block, in the order in which the blocks compute.
        device: The device.
        requested: Called with the number of a block whenever a copy of its weights is requested.
    """

    def __init__(self, weights: Sequence[Weights], device: torch.device) -> None:
        """Prepare the copies. No memory of the device is taken yet."""
        self.weights = tuple(weights)
        self.device = device
        self.requested: Callable[[int], None] = lambda block: None
        self._slots: list[Slot] = []  # the one that was entered last is the last one
        self._lane = Lane(device, max(weights.size for weights in self.weights))
        self._followers: dict[tuple[str, int], int] = {}
        self._last: tuple[str, int] | None = None

    def enter(self, block: int) -> None:
        """Make the weights of a block available to it, and request those of the block that is expected next."""
        following = self._following(block)
        with torch.inference_mode(False), torch.no_grad():
            self._make_slots()
            slot = self._slot_with(block) or self._request(block)
            self._slots.remove(slot)
            self._slots.append(slot)
            self._lane.wait(slot)
            if not slot.shown:
                if block not in slot.copies:
                    slot.copies[block] = self.weights[block].copies(slot.memory)
                self.weights[block].show(slot.copies[block])
                slot.shown = True
            if following is not None and len(self._slots) > 1 and self._slot_with(following) is None:
                self._request(following)

    def rest(self) -> None:
        """Let the network have the weights in host memory, which no copy reads any more.

        The slots lose what they hold.
        """
        self._lane.finish(self._slots)
        self._vacate_all()

    def free(self) -> None:
        """Give the memory of the slots back to the device. The next block that computes takes it anew."""
        self._lane.drain(self._slots)
        self._vacate_all()
        self._slots = []
        self._last = None

    def _following(self, block: int) -> int | None:
        """Return the block that is expected after this one, which is about to compute; None if none is expected."""
        backward = torch._C._current_graph_task_id() != -1  # torch.utils.checkpoint asks for it in the same way
        kind = "backward" if backward else "training" if torch.is_grad_enabled() else "plain"
        if self._last is not None:
            self._followers[self._last] = block
        self._last = (kind, block)
        guess = block - 1 if backward else block + 1
        return self._followers.get((kind, block), guess if 0 <= guess < len(self.weights) else None)

    def _make_slots(self) -> None:
        if not self._slots:
            size = max(weights.size for weights in self.weights)
            count = min(SLOTS, len(self.weights))
            self._slots = [Slot(torch.empty(size, dtype=torch.uint8, device=self.device)) for _ in range(count)]

    def _slot_with(self, block: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.holds == block), None)

    def _request(self, block: int) -> Slot:
        """Have the weights of a block copied into the slot that was entered longest ago, and return this slot."""
        slot = self._slots.pop(0)
        self._slots.insert(max(len(self._slots) - 1, 0), slot)
        self._vacate(slot)
        slot.holds = block
        self.requested(block)
        self._lane.copy(self.weights[block], slot)
        return slot

    def _vacate_all(self) -> None:
        for slot in self._slots:
            self._vacate(slot)

    def _vacate(self, slot: Slot) -> None:
        if slot.shown and slot.holds is not None:
            self.weights[slot.holds].rest()
            # A tensor with others inside counts its own changes, and would not notice that of the memory.
            inside = [copy for copy in slot.copies[slot.holds] if hasattr(copy, "__tensor_flatten__")]
            torch.autograd.graph.increment_version(inside)
        slot.holds, slot.shown = None, False
