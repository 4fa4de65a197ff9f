"""Puts a transform around a recipe, which makes a new recipe whose requests have the fields of both."""

from __future__ import annotations

import attrs

from qframe.errors import PluginError
from qframe.interfaces import Recipe, RecipeTransform, Request

_OF_THE_INNER = ("__module__", "__qualname__", "version", "references", "pictures", "positional")


def transformed(recipe: type[Recipe], transform: type[RecipeTransform]) -> type[RecipeTransform]:
    """Return a subclass of `transform` whose inner recipe is `recipe`, and whose requests have the fields of both.

    The subclass has the name and the version of `recipe`, because a cache entry is looked up by them: what was encoded
    for `recipe` serves the subclass too.
    """
    declared = {name: getattr(recipe, name) for name in _OF_THE_INNER}
    if hasattr(recipe, "sampling"):
        declared["sampling"] = recipe.sampling
    own = {"request_type": _joined(recipe.request_type, transform.request_type), "inner_type": recipe}
    return type(recipe.__name__, (transform,), declared | own)


def _joined(recipe: type[Request], transform: type[Request]) -> type[Request]:
    """A subclass of the recipe's request with the fields that only the transform's request has.

    Raises:
        PluginError: Both have a field of one name whose converters differ, so that it means different things.
    """
    if recipe is Request:
        return transform
    known = {field.name: field for field in attrs.fields(recipe)}
    for field in attrs.fields(transform):
        if field.name in known and known[field.name].converter != field.converter:
            raise PluginError(
                f"{recipe.__name__} and {transform.__name__} both take {field.name!r}, and read it differently",
                "The transform fits only recipes that read this field in the same way, or do not have it.",
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
