"""What every component that is read from a model folder implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from qframe.files.model_folder import ModelFolder


class Loadable(ABC):
    """A part that comes out of a checkpoint.

    `options` is an instance of the class its Component declares, or None if it declares none. placed_on: where it
    computes while its weights rest elsewhere; placement sets it. group_offload: what moves at a time when its weights
    are offloaded in groups; block_level needs repeated blocks in a child of the network, and a run that enters the
    network by `forward`. entered_by_forward: it does; else the next group cannot be fetched ahead.
    """

    group_offload: ClassVar[Literal["block_level", "leaf_level"]] = "leaf_level"
    entered_by_forward: ClassVar[bool] = False
    placed_on: torch.device | None = None

    @property
    def network(self) -> nn.Module | None:
        """Its weights, which placement and quantisation see; None for a part that has none, or keeps them in place."""
        return None

    @property
    def execution_device(self) -> torch.device:
        """Where it computes, and so where its inputs belong: not always where its weights are."""
        if self.placed_on is not None:
            return self.placed_on
        first = None if self.network is None else next(self.network.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self | None:
        """The part with its network on the meta device: shapes without weights, from configuration files alone.

        None where it cannot be told; then nothing is estimated.
        """
        return None

    @classmethod
    @abstractmethod
    def describe(cls, model: ModelFolder, options: Any) -> Any:
        """Its Spec, from configuration files alone: no weight is read. WeightsError names what is missing."""

    @classmethod
    @abstractmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """The part itself, weights on `device` in `dtype`, in evaluation mode, without gradients."""

    @classmethod
    @abstractmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
        """Everything that the output of this component depends on, by name: digests of files, settings, versions.

        Nothing is loaded for it. The keys of the cache and the checkpoints of a training run hold the ingredients, and
        `qframe cache explain` tells a user which of them changed: so each gets a name of its own.
        """
