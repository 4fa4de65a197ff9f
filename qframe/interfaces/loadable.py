"""The contract of every component that is loaded from a model folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from qframe.files.model_folder import ModelFolder


class Streamed(ABC):
    """A network some of whose weights rest in host memory, and are copied to the device block by block.

    `qframe.compose.streaming` has the implementation.
    """

    @abstractmethod
    def settle(self) -> None:
        """Move everything to the device that is in the network and not streamed, such as an adapter that is new."""

    @abstractmethod
    def rest(self) -> None:
        """Let all parameters be those in host memory. Whoever changes frozen weights calls this method before."""

    @abstractmethod
    def free(self) -> None:
        """Give back the memory of the device that is needed only while the network computes."""


class Loadable(ABC):
    """A component that is loaded from a model folder.

    The parameter `options` of the methods is an instance of the class that the plugin declares for the component's
    options, or None if the plugin declares none.

    Attributes:
        placed_on: The device on which the component computes, where its weights are kept on another one. Placement
            sets it.
        streamed: Streams the weights of the network, if they are streamed. Placement sets it.
        spec: The component's spec (such as `CodecSpec`), where a pipeline loaded it. The author of an instance that is
            put into a pipeline sets it; if it is None, `describe` of its class is asked.
    """

    placed_on: torch.device | None = None
    streamed: Streamed | None = None
    spec: Any = None

    @property
    def network(self) -> nn.Module | None:
        """The network that placement moves and quantisation changes; None if the component has no such network."""
        return None

    @classmethod
    def block_lists(cls) -> tuple[str, ...]:
        """Return the names of the lists of repeated blocks in the network, in the order in which they compute.

        Each name is the path of a `torch.nn.ModuleList`. The blocks of a list are called one after another, and all of
        a block's parameters are used inside of its call. Then the weights of blocks can be streamed: copied to the
        device while the block before computes. The default returns none: such a network is moved as a whole.
        """
        return ()

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
    def absent(cls, model: ModelFolder, options: Any) -> str | None:
        """Return why the model folder has no such component at all, or None if it has one. The default returns None.

        A request that gives embeddings in place of prompts needs no encoder, so a model folder may lack one.
        """
        return None

    @classmethod
    def not_in_file(cls, file: Path) -> str | None:
        """Return None if a single file of weights holds this component, else what the file holds, in a few words.

        The file ends with .safetensors or .gguf. If this method returns None for it, `load` and the other methods may
        get a `ModelFolder` whose `file` is this file. The default refuses every file.

        Raises:
            WeightsError: The file cannot be read.
        """
        return "and this component is read from model folders alone"

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
