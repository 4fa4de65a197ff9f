"""Functions for the settings of recipes: defaults from the model folder, and the geometry of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.pictures.geometry import Geometry


def with_defaults(settings: Any, model: ModelFolder, published: Mapping[str, Any]) -> Any:
    """Replace each None in a recipe's settings by the model folder's value, else by the published value.

    A model folder names values in its file qframe.json, table "recipe". For example, a small model names there the
    picture sizes that it was made for. A value that the user's configuration gives is not None, and stays.

    Args:
        settings: The settings of the recipe.
        model: The model folder.
        published: The values of the published model, by the name of the setting.

    Raises:
        WeightsError: The table "recipe" holds something that the settings do not allow.
    """
    noted = model.read_json("qframe.json").get("recipe", {}) if model.has("qframe.json") else {}
    if not isinstance(noted, dict):
        raise WeightsError(f"model {model.name!r}: qframe.json: 'recipe' must be an object")
    missing = {field.name for field in attrs.fields(type(settings)) if getattr(settings, field.name) is None}
    values = {name: noted.get(name, published.get(name)) for name in missing}
    try:
        return attrs.evolve(settings, **values)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"model {model.name!r}: qframe.json, table 'recipe': {error.args[0]}",
            "Correct the file, or set the value in the configuration, table [recipe].",
        ) from error


def fitting_geometry(settings: Any, prefix: str = "") -> Geometry:
    """Make the geometry that a recipe's settings describe by `min_area`, `max_area`, `areas` and `multiple`.

    Args:
        settings: The settings, without any None left among these names.
        prefix: Stands before `min_area` and `max_area` where a recipe has a second geometry; that one has no `areas`.

    Raises:
        ConfigError: The areas contradict each other.
    """
    least, most = (f"{prefix}{name}" for name in ("min_area", "max_area"))
    try:
        areas = () if prefix else settings.areas or ()
        return Geometry(getattr(settings, least), getattr(settings, most), settings.multiple, areas)
    except ValueError as error:
        raise ConfigError(
            f"recipe: {error}", f"Set recipe.{least} and recipe.{most} together, or recipe.areas in their place."
        ) from error
