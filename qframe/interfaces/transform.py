"""The contract of a transform: it makes another task of a recipe's plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from qframe.interfaces.examples import Example, Record
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import Plan
from qframe.interfaces.recipe import Recipe
from qframe.interfaces.request import Request


class PlanTransform(ABC):
    """Makes another task of a recipe's plans: how tasks mix. Registered as kind "transform", named by a Family.

    request_type: the Request whose fields it takes; those that the recipe's own lacks are added to it. optional: a
    request that uses none of them is the recipe's own, so that a family with this transform can be trained. trains: it
    can be anyway, since `request_for` fills them from a record. Its examples are the recipe's, in one cache.
    """

    request_type: ClassVar[type[Request]]
    optional: ClassVar[bool]
    trains: ClassVar[bool] = False

    def split(self, request: Request, recipe: Recipe) -> list[tuple[tuple[int, ...], Request]]:
        """As `Recipe.split`. Override where pictures that it adds decide the size."""
        return recipe.split(request)

    def shown(self, request: Request, recipe: Recipe) -> list[tuple[Image.Image, ...]]:
        """As `Recipe.shown`. Override where the recipe is shown other pictures than the request has."""
        return recipe.shown(request)

    def loss_weight(self, example: Example, generator: torch.Generator, recipe: Recipe) -> Tensor | None:
        """As `Recipe.loss_weight`. Override where the task is to make a part of a picture."""
        return recipe.loss_weight(example, generator)

    def request_for(self, record: Record, request: Request) -> Request:
        """As `Recipe.request_for`. request: the recipe's own, of the class that has the fields of both.

        By default as it is. Override where fields that it adds are needed, and set `trains`.
        """
        return request

    @abstractmethod
    def plan(self, request: Request, parts: Parts, recipe: Recipe) -> Plan:
        """As `Recipe.plan`: what it makes of `recipe.plan(...)`, which takes `request`, changed or not."""
