"""The contract of a quantiser: it stores frozen weights in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from qframe.progress import SILENT, Progress


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

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:  # noqa: B027 - most need nothing
        """Make ready what quantised weights need on this machine, before any weights are loaded.

        A quantiser that compiles code does it here, because nobody should find out after an hour of encoding that there
        is no compiler. By default there is nothing to make ready.

        Args:
            device: The device on which the quantised weights will compute.
            progress: Is told what takes long, and what is waited for.

        Raises:
            ConfigError: This machine lacks something; the message names it.
        """

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
