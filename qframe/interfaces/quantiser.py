"""The contract of a quantiser: it keeps frozen weights in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Quantiser(ABC):
    """Makes the frozen weights of a network smaller. Registered as kind "quantiser", built with its options.

    A quantised layer stays a torch.nn.Linear to whoever looks, so that LoRA can be put on it; gradients run through
    it to its inputs, none into it.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def quantise(self, network: nn.Module) -> None:
        """Replace the linear layers of `network` that it chooses, in place, where their weights lie.

        NumericsError names a layer with weights that are not finite: they would be saturated in silence.
        """

    @abstractmethod
    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        """Bytes that the weight of this layer will take; None where it is left as it is. Shapes alone are read."""

    @abstractmethod
    def ingredient(self) -> str:
        """What the quantised values depend on: the back end, its version and the options.

        It joins the ingredients of the component whose weights are quantised, under the name "quantised".
        """
