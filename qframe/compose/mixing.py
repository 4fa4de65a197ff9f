"""How tasks mix: a recipe whose plans pass through a transform is a recipe again."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.errors import ConfigError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Example, ExampleInputs, Parts, Plan, PlanTransform, Recipe, Record, Request

R = TypeVar("R", bound=Request)


def transformed(recipe: type[Recipe], transform: type[PlanTransform]) -> type[Recipe]:
    """The recipe whose plans pass through `transform`; its request has the fields of both.

    It is trained on the examples of `recipe`, and under its name, so that both share their cache entries.
    """
    return type(
        recipe.__name__,
        (_Transformed,),
        {
            "__module__": recipe.__module__,
            "__qualname__": recipe.__qualname__,
            "version": recipe.version,
            "references": recipe.references,
            "pictures": recipe.pictures,
            "positional": recipe.positional,
            "request_type": _joined(recipe.request_type, transform.request_type),
            "recipe_class": recipe,
            "transform_class": transform,
        },
    )


def as_request(kind: type[R], request: Request, **changes: Any) -> R:
    """A request of `kind` with those fields of `request`, and of `changes`, that it has; its defaults elsewhere."""
    known = {field.name for field in attrs.fields(kind)}
    values = {field.name: getattr(request, field.name) for field in attrs.fields(type(request))} | changes
    return kind(**{name: value for name, value in values.items() if name in known})


class _Transformed(Recipe):
    recipe_class: ClassVar[type[Recipe]]
    transform_class: ClassVar[type[PlanTransform]]

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        self.recipe = self.recipe_class(settings, model)
        self.transform = self.transform_class()
        super().__init__(self.recipe.settings, model)
        if not hasattr(self.recipe, "geometry"):
            raise PluginError(
                f"recipe {self.recipe_class.__qualname__} has no geometry, which transforms need",
                "Its __init__ sets one: see qframe.interfaces.Recipe.",
            )
        self.geometry = self.recipe.geometry

    def inputs(self, record: Record) -> ExampleInputs:
        if not (self.transform.optional or self.transform.trains):
            raise ConfigError(
                f"this family samples only: a data set has nothing for its transform {self.transform_class.__name__}",
                "Train the family whose recipe it takes; its LoRA files serve here too.",
            )
        return self.recipe.inputs(record)

    def request_for(self, record: Record) -> Request:
        return self.transform.request_for(record, as_request(self.request_type, self.recipe.request_for(record)))

    def loss_weight(self, example: Example, generator: torch.Generator) -> Tensor | None:
        return self.transform.loss_weight(example, generator, self.recipe)

    def split(self, request: Request) -> list[tuple[tuple[int, ...], Request]]:
        return self.transform.split(request, self.recipe)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        return self.transform.shown(request, self.recipe)

    def plan(self, request: Request, parts: Parts) -> Plan:
        return self.transform.plan(request, parts, self.recipe)


def _joined(recipe: type[Request], transform: type[Request]) -> type[Request]:
    """A subclass of the recipe's request with what the transform's has beside.

    PluginError if both have a field of one name that means different things: its converters differ.
    """
    if recipe is Request:
        return transform
    known = {field.name: field for field in attrs.fields(recipe)}
    for field in attrs.fields(transform):
        if field.name in known and known[field.name].converter != field.converter:
            raise PluginError(
                f"{recipe.__name__} and {transform.__name__} both take {field.name!r}, and read it differently",
                "A transform works on recipes that take what it takes in the same form, or under another name.",
            )
    added = {
        field.name: attrs.field(
            default=field.default,
            converter=field.converter,
            validator=field.validator,
            metadata=field.metadata,
            type=field.type,
        )
        for field in attrs.fields(transform)
        if field.name not in known
    }
    name = recipe.__name__.removesuffix("Request") + transform.__name__
    joined: type[Request] = attrs.make_class(
        name, added, bases=(recipe,), frozen=True, eq=False, kw_only=True, slots=True, collect_by_mro=True
    )
    return joined
