"""The contract of an optimizer: a factory that builds the torch optimizers of a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class OptimizerFactory(ABC):
    """A factory of the torch optimizers of a training run.

    A plugin registers a subclass as a component of kind "optimizer".
    `__init__` raises ConfigError if a package that the optimizers need is not installed, so that the user learns of it
    before anything is encoded.

    Attributes:
        options: An instance of the class that the plugin declares for the component's options, or None.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build one or more optimizers, such that each parameter belongs to exactly one of them.

        In a training step the optimizers are stepped one after the other. Their state and their parameter groups are
        stored in checkpoints, and may hold only tensors, numbers, text, None, and lists, tuples and dicts of these.

        Args:
            parameters: The parameters to train, by name.
            learning_rate: The peak learning rate. The rate that a parameter group is built with is taken as its peak,
                and multiplied by the factor of the learning-rate schedule in every step.
            weight_decay: The weight decay.
            blocks: The name of the denoiser's list of repeated blocks (`Denoiser.blocks`), with which the names of
                their parameters begin.
        """

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Return how many bytes the optimizers' state will take. The default counts two moments of each parameter.

        Args:
            parameters: The parameters to train, by name; they may be on the meta device.
            blocks: Same as in `build`.
        """
        return 2 * sum(parameter.nbytes for parameter in parameters.values())
