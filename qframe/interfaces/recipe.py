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
    """A recipe that joins the components of a family for one task.

    It says what is encoded of a record for training, and how a request is sampled. A plugin names a subclass in the
    declaration of a `Family`.

    A request becomes pictures in two steps. `settle` opens, sizes and checks it without weights; `plan` runs the
    encoder and the codec. `qframe.sample.settling` calls both, and does the checks that are the same for every recipe.

    Attributes:
        version: A number that is part of every cache key. Increase it when a change of `inputs` makes cached examples
            invalid.
        request_type: The class of requests whose fields the task takes: `Request` or a subclass.
        sampling: What the family samples with where a request leaves a value open.
        references: Whether the denoiser gets references in the plans of this recipe.
        pictures: Whether the encoder looks at pictures in addition to the prompts.
        positional: The arguments that a call takes by position, as diffusers' pipeline of the task does.
        settings: The settings that the family declares, filled in from the configuration.
        model: The model folder. It is there for what belongs to no component (areas, default sigmas); a recipe reads no
            weights from it.
        geometry: Decides the size that pictures of the task are resized to, and the size of a result if the request
            names none. `__init__` sets it; a recipe without a geometry cannot be used with transforms.
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
        """Return what must be encoded to train on a record. No picture is opened, because cached training opens none.

        Raises:
            DataError: The record lacks something that the task needs; the message names the record and what it lacks.
        """

    def loss_map(self, example: Example, generator: torch.Generator) -> Tensor | None:
        """Return how much the loss of each place counts in one training step, [h, w] in [0, 1]; None counts all alike.

        The default returns the example's own `loss_map`. With a cache this method is called in the thread that makes
        batches ahead, on the CPU, one call at a time. It must draw from `generator` alone, because dropout draws from
        the global one meanwhile.

        Args:
            example: An encoded example.
            generator: The source of random numbers for a map that is drawn anew in every step. It is seeded by the
                run's seed, the step and the example's place in the batch, so that a resumed run draws the same map.
        """
        return example.loss_map

    @abstractmethod
    def request_for(self, record: Record) -> Request:
        """Return the request for the target picture of a record. The samples of a training run are made with it."""

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        """Return the pictures that the encoder sees with each prompt of a request, resized as the encoder sees them.

        `Pipeline.encode_prompt` calls this method. The default returns no pictures; a recipe
        whose `pictures` is True overrides it.
        """
        if self.pictures:
            raise PluginError(
                f"recipe {type(self).__qualname__} shows its encoder pictures and does not say which",
                "It overrides `shown`: see qframe.interfaces.Recipe.",
            )
        return [()] * request.prompt_count

    @abstractmethod
    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        """Open the pictures of a request, decide the sizes of its results, and check what only this recipe can check.

        No network runs. One `Settled` is returned for each size that the results have; each picture of the result
        belongs to exactly one of them. `qframe.sample.settling.split_by_size` and `settle_part` do most of it.

        Args:
            request: A request of `request_type`, filled in from `sampling`, that has passed the common checks.
            parts: What is known of the components; none of them needs to be loaded.

        Raises:
            ConfigError: The request cannot be met.
            DataError: A picture cannot be used.
        """

    @abstractmethod
    def plan(self, settled: Settled, parts: Parts) -> Plan:
        """Return everything that the sampling loop needs. This method runs the encoder, and the codec on pictures.

        Args:
            settled: One of the values that `settle` of this recipe returned.
            parts: The components, encoder and codec loaded.
        """
