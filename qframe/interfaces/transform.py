"""The contract of a transform: a recipe around another recipe, which makes another task of it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from qframe.errors import ConfigError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces.examples import Example, ExampleInputs, Record
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import Plan
from qframe.interfaces.recipe import Recipe
from qframe.interfaces.request import Request, as_request
from qframe.interfaces.settled import Settled


class RecipeTransform(Recipe):
    """A recipe around an inner recipe. Each method calls the inner recipe's; override those in which the task differs.

    A plugin registers a subclass as a component of kind "transform", and a `Family` names it in `transforms`. The
    subclass is not instantiated: for each recipe that it is put around, `qframe.compose.mixing.transformed` derives a
    class from it. Training examples are those of the inner recipe, from the same cache entries.

    Attributes:
        request_type: While you write the transform, the class with the fields that the transform needs. On an instance,
            the class that has the fields of the inner recipe as well.
        optional: Whether a request that uses none of the transform's fields is sampled as by the inner recipe alone.
            A family with an optional transform can be trained.
        trains: Whether `request_for` fills the transform's fields from a record, so that a family can be trained
            although the transform is not optional.
        inner_type: The class of the inner recipe; set by `transformed`.
        inner: The inner recipe.
    """

    optional: ClassVar[bool]
    trains: ClassVar[bool] = False
    inner_type: ClassVar[type[Recipe]]

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        self.inner = self.inner_type(settings, model)
        super().__init__(self.inner.settings, model)
        if not hasattr(self.inner, "geometry"):
            raise PluginError(
                f"recipe {self.inner_type.__qualname__} has no geometry, which transforms need",
                "Its __init__ sets one: see qframe.interfaces.Recipe.",
            )
        self.geometry = self.inner.geometry

    def inputs(self, record: Record) -> ExampleInputs:
        if not (self.optional or self.trains):
            written = type(self).__bases__[0].__name__
            raise ConfigError(
                f"this family samples only: a data set has nothing for its transform {written}",
                "Train the family whose recipe it takes; its LoRA files serve here too.",
            )
        return self.inner.inputs(record)

    def loss_map(self, example: Example, generator: torch.Generator) -> Tensor | None:
        return self.inner.loss_map(example, generator)

    def request_for(self, record: Record) -> Request:
        return as_request(self.request_type, self.inner.request_for(record))

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        return self.inner.shown(request)

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        return self.inner.settle(request, parts)

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        return self.inner.plan(settled, parts)
