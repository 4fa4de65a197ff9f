"""The contract of a recipe: it joins the components of a family for one task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from qframe.errors import PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces.examples import Example, ExampleInputs, Record
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import Plan
from qframe.interfaces.request import Request, SamplingDefaults
from qframe.interfaces.settled import Settled
from qframe.pictures.geometry import Geometry


class Recipe(ABC):
    """Joins the components of a family for one task: what is encoded for training, and how a request is sampled.

    A request becomes pictures in two steps. `settle` opens, sizes and checks it without weights; `plan` runs the
    encoder and the codec. `qframe.sample.settling` calls both, and does the checks that are the same for every recipe.

    Attributes:
        version: Raise it when `inputs` means something else than before. It is part of every cache key.
        request_type: The class of requests whose fields the task takes: `Request` or a subclass.
        sampling: What the family samples with where a request leaves a value open.
        references: Whether the denoiser gets references in the plans of this recipe.
        pictures: Whether the encoder looks at pictures in addition to the prompts.
        positional: The arguments that a call takes by position, as diffusers' pipeline of the task does.
        settings: The settings that the family declares, filled in from the configuration.
        model: The model folder. It is there for what belongs to no component (areas, default sigmas); a recipe reads no
            weights from it.
        geometry: What pictures of the task are brought into, and so the size of a result for which a request names
            none. `__init__` sets it; a recipe without one cannot be used with transforms.
    """

    version: ClassVar[int] = 1
    request_type: ClassVar[type[Request]] = Request
    sampling: ClassVar[SamplingDefaults]
    references: ClassVar[bool] = False
    pictures: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("prompt", "negative_prompt")
    geometry: Geometry

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        self.settings = settings
        self.model = model

    @abstractmethod
    def inputs(self, record: Record) -> ExampleInputs:
        """What must be encoded to train on this record. It opens no picture, so that cached training never does.

        Raises:
            DataError: The record lacks something; the message names both.
        """

    def loss_map(self, example: Example, generator: torch.Generator) -> Tensor | None:
        """Where the loss counts in one step of training, and how much: [h, w] in [0, 1]; None is everywhere alike.

        By default the map that the example brings.

        Args:
            example: An encoded example.
            generator: For what is drawn anew in every step. It is seeded by (seed, step, place in the batch), so that a
                resumed run draws the same.
        """
        return example.loss_map

    @abstractmethod
    def request_for(self, record: Record) -> Request:
        """The request that asks for the target of this record. Validation samples with it."""

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        """The pictures that the encoder sees with each prompt of a request, at the size at which it sees them.

        `Pipeline.encode_prompt` uses it. By default there are none; a recipe whose `pictures` is True overrides it.
        """
        if self.pictures:
            raise PluginError(
                f"recipe {type(self).__qualname__} shows its encoder pictures and does not say which",
                "It overrides `shown`: see qframe.interfaces.Recipe.",
            )
        return [()] * request.prompt_count

    @abstractmethod
    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        """Open the pictures of a request, decide sizes, and check what this recipe alone can check. Runs no network.

        One `Settled` is returned for each size that the results have; together their places cover the result once.
        `qframe.sample.settling.split_by_size` and `settle_part` do most of it.

        Args:
            request: A request of `request_type`, filled in from `sampling`, that has passed the common checks.
            parts: What is known of the components; none of them needs to be loaded.

        Raises:
            ConfigError: The request cannot be met.
            DataError: A picture cannot be used.
        """

    @abstractmethod
    def plan(self, settled: Settled, parts: Parts) -> Plan:
        """Everything that the sampling loop needs. This is where encoder and codec run.

        Args:
            settled: One of the values that `settle` of this recipe returned.
            parts: The components, encoder and codec loaded.
        """
