"""The contract of an optimizer factory: it builds the optimizers that update the trained weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class OptimizerFactory(ABC):
    """Builds the optimizers of a run. Registered as kind "optimizer", and made with its options.

    `__init__` raises ConfigError if a package that the optimizers need is not installed, so that a user learns of it
    before anything is encoded.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build one or more optimizers, which are stepped one after the other.

        Each parameter belongs to one of the optimizers. Their state, of parameters and of groups, may have tensors,
        numbers, text and None, in lists, tuples and dicts; nothing else can be saved in a checkpoint.

        Args:
            parameters: The trained parameters, by name.
            learning_rate: The peak of the learning rate. The schedule scales the rate of every group in every step, and
                takes the rate that the group was built with as the peak.
            weight_decay: The weight decay that the user set.
            blocks: The name of the network's repeated blocks. The names of their parameters begin with it.
        """

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Return how many bytes the state will take. The default is two moments of each parameter.

        Args:
            parameters: The trained parameters, by name. Only shapes and dtypes are read, so that they may lie on the
                meta device.
            blocks: As for `build`.
        """
        return 2 * sum(parameter.nbytes for parameter in parameters.values())
