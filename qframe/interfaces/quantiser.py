"""The contract of a quantiser: it stores frozen weights in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Quantiser(ABC):
    """A quantiser that stores the frozen weights of a network in fewer bits.

    A plugin registers a subclass as a component of kind "quantiser".

    A quantised layer must still be an instance of torch.nn.Linear, so that a LoRA can be put on it. Gradients flow
    through it to its inputs; its weight gets none.

    Attributes:
        options: An instance of the class that the plugin declares for the quantiser's options, or None.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def quantise(self, network: nn.Module) -> None:
        """Replace linear layers of `network` by quantised ones, in place and on the device that they are on.

        The quantiser chooses the layers. NumericsError names a layer whose weights are not finite, because
        quantisation would turn these into finite ones without an error.
        """

    @abstractmethod
    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        """Return the bytes that the weight of a layer will take when it is quantised.

        Args:
            name: The layer's full name.
            layer: The layer; only its shape is read, so that it may lie on the meta device.

        Returns:
            None if the quantiser leaves the layer as it is.
        """

    @abstractmethod
    def ingredient(self) -> str:
        """Return text that names everything the quantised values depend on: the back end, its version and the options.

        The text is added, under the name "quantised", to the ingredients of the component whose weights are quantised.
        """
