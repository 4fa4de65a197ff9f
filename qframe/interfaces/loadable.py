"""The contract of every component that is loaded from a model folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from qframe.files.model_folder import ModelFolder


class Loadable(ABC):
    """A component that is loaded from a model folder.

    The parameter `options` of the methods is an instance of the class that the plugin declares for the component's
    options, or None if the plugin declares none.

    Attributes:
        group_offload: How the weights are grouped when placement offloads them in groups, each moved to the device
            while it is needed. "leaf_level" works for every network. "block_level" needs a child of the network with
            repeated blocks, and a network that is run by its `forward`.
        entered_by_forward: Whether the component runs its network by the network's `forward`. Only then can the next
            group of weights be fetched ahead.
        placed_on: The device on which the component computes, where its weights are kept on another one. Placement
            sets it.
    """

    group_offload: ClassVar[Literal["block_level", "leaf_level"]] = "leaf_level"
    entered_by_forward: ClassVar[bool] = False
    placed_on: torch.device | None = None

    @property
    def network(self) -> nn.Module | None:
        """The network that placement moves and quantisation changes; None if the component has no such network."""
        return None

    @property
    def execution_device(self) -> torch.device:
        """The device on which the component computes and takes its inputs; its weights may be kept on another one."""
        if self.placed_on is not None:
            return self.placed_on
        first = None if self.network is None else next(self.network.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self | None:
        """Return the component with its network on the meta device, made from configuration files alone.

        Such a network has the names and shapes of all weights, and no weights. Memory is estimated from it before
        anything is loaded. The default returns None: then no memory is estimated for the component.

        Args:
            model: The model folder.
            options: The component's options.
            dtype: The dtype that the weights would have.
        """
        return None

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        """Return the dtype that all weights of the component have in their files; None if they have several.

        Weights that are loaded onto the CPU in this dtype are mapped into memory: they take no memory of their own,
        because the system reads their pages when they are needed, and drops them again where memory is short. So they
        may be larger than the machine's memory. The default returns None, for a component that copies its weights.
        """
        return None

    @classmethod
    @abstractmethod
    def describe(cls, model: ModelFolder, options: Any) -> Any:
        """Return the component's spec (such as `CodecSpec`), read from configuration files alone.

        Raises:
            WeightsError: The model folder lacks something that the component needs, or its configuration names another
                class of component.
        """

    @classmethod
    @abstractmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the component.

        Args:
            model: The model folder.
            options: The component's options.
            device: The device for the weights.
            dtype: The dtype of the weights.

        Returns:
            The component in evaluation mode; its weights need no gradients.
        """

    @classmethod
    @abstractmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
        """Return by name everything that the output depends on: digests of weights, settings, versions of libraries.

        Nothing is loaded. The keys of the cache and the checkpoints of a training run hold the ingredients: when one
        changes, examples are encoded again, and `qframe cache explain` names it.
        """
