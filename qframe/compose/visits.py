"""Hooks of accelerate by which a network whose blocks are streamed comes to its device, and others leave for it."""

from __future__ import annotations

from typing import Any, Protocol

from accelerate.hooks import ModelHook
from torch import nn

from qframe.compose.streaming import StreamedNetwork


class Offloads(Protocol):
    """What can take a network off its device."""

    def offload(self) -> object:
        """Take the network off its device."""


class Visit(ModelHook):
    """Brings a streamed network to its device when it is entered, by `forward` or by a method that runs hooks.

    Attributes:
        network: The streamed network.
        previous: Takes the network off its device that is used before this one; None if there is none.
    """

    def __init__(self, network: StreamedNetwork, previous: Offloads | None) -> None:
        self.network = network
        self.previous = previous

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not self.network.here:
            if self.previous is not None:
                self.previous.offload()
            self.network.arrive()
        return args, kwargs

    def offload(self) -> None:
        """Take the network off its device."""
        self.network.free()


class Departure(ModelHook):
    """Takes another network off its device when a network is entered.

    Attributes:
        other: Takes the other network off its device.
    """

    def __init__(self, other: Offloads) -> None:
        self.other = other

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.other.offload()
        return args, kwargs
