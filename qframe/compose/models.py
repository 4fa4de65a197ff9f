"""Opens the model folders that a configuration names. Only configuration files are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qframe.config.schema import Config
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.plugins.hookspecs import Component
from qframe.plugins.offers import ChosenFamily, Offer


def open_model(name: str, bundled: Mapping[str, Offer[Component]]) -> ModelFolder:
    """Open the model folder that a name stands for.

    Args:
        name: The registered name of a model that ships with a plugin, the path of a local folder, or a hub id.
        bundled: The models that ship with plugins, by their registered name.

    Raises:
        WeightsError: There is no such folder, or it cannot be downloaded from the hub.
    """
    if name in bundled:
        locate: Callable[[], str | Path] = bundled[name].resolve()
        folder = Path(locate())
        if not folder.is_dir():
            raise WeightsError(
                f"model {name!r} of plugin {bundled[name].plugin!r}: {folder} is no folder", "Reinstall the plugin."
            )
        return ModelFolder(name, folder)
    try:
        return ModelFolder.open(name)
    except WeightsError as error:
        if bundled and error.hint:
            raise WeightsError(error.message, f"{error.hint} Bundled: {', '.join(bundled)}.") from error
        raise


def open_models(config: Config, chosen: ChosenFamily, roles: Iterable[str]) -> dict[str, ModelFolder]:
    """Open the model folders that a configuration names for some roles; a folder that several name is opened once.

    Args:
        config: The configuration.
        chosen: The family of the configuration, which may name a model of its own.
        roles: The roles whose components are loaded from a model folder.

    Returns:
        The folder of each role, and under "model" the folder of the whole configuration.

    Raises:
        ConfigError: Neither the configuration nor the family names a model.
    """
    name = config.model or chosen.family.model
    if name is None:
        bundled = ", ".join(chosen.models)
        raise ConfigError(
            f"model: none is given, and family {chosen.family.name!r} has none of its own",
            "Give --model: a folder in the diffusers layout, a hub id"
            + (f", or one that ships with a plugin ({bundled})." if bundled else "."),
        )
    names = {"model": name} | {role: getattr(config, role).model or name for role in roles}
    opened = {one: open_model(one, chosen.models) for one in dict.fromkeys(names.values())}
    return {role: opened[one] for role, one in names.items()}
