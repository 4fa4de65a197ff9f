"""The contract of an optimizer: it builds what steps the trained weights."""

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
        """Optimizers that share the parameters out among themselves; they are stepped one after the other.

        The rate that a group is built with is its peak: the schedule scales it in every step. blocks: the name of the
        repeated blocks, which the names of their parameters begin with. State may be tensors, numbers, text, None, and
        lists, tuples and dicts of them, on parameters and in groups.
        """

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Bytes that its state will take; shapes alone are read. By default two moments of each parameter."""
        return 2 * sum(parameter.nbytes for parameter in parameters.values())
