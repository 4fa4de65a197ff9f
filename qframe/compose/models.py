"""Opens the model folders that a configuration names. Only configuration files and headers of weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qframe.config.schema import Config
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.files.weight_header import PICKLED, SINGLE_FILES, what_is
from qframe.interfaces import Loadable
from qframe.plugins.hookspecs import Component
from qframe.plugins.offers import ChosenFamily, Offer


def open_model(name: str, bundled: Mapping[str, Offer[Component]], variant: str | None = None) -> ModelFolder:
    """Open the model folder that a name stands for.

    Args:
        name: The registered name of a model that ships with a plugin, the path of a local folder, or a hub id.
        bundled: The models that ship with plugins, by their registered name.
        variant: Which weights are read where there are several sets; see `ModelFolder`.

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
        return ModelFolder.open(name, variant)
    except WeightsError as error:
        if bundled and error.hint and variant is None:
            raise WeightsError(error.message, f"{error.hint} Bundled: {', '.join(bundled)}.") from error
        raise


def open_models(config: Config, chosen: ChosenFamily, classes: Mapping[str, type[Loadable]]) -> dict[str, ModelFolder]:
    """Open the model folders that a configuration names for some roles; a folder that several name is opened once.

    A single file of weights may be named for a role: then the folder of the whole configuration has the configuration
    of that component. It may also be named for the whole configuration: then it is read for the roles whose components
    it holds, and everything else comes from the family's own model.

    Args:
        config: The configuration.
        chosen: The family of the configuration, which may name a model of its own.
        classes: The classes of the roles whose components are loaded from a model folder.

    Returns:
        The folder of each role, and under "model" the folder of the whole configuration.

    Raises:
        ConfigError: Neither the configuration nor the family names a model.
        WeightsError: A folder cannot be opened, or a file does not hold the component that it is named for.
    """
    name = config.model or chosen.family.model
    if name is None:
        bundled = ", ".join(chosen.models)
        raise ConfigError(
            f"model: none is given, and family {chosen.family.name!r} has none of its own",
            "Give --model: a folder in the diffusers layout, a hub id"
            + (f", or one that ships with a plugin ({bundled})." if bundled else "."),
        )
    opened: dict[str, ModelFolder] = {}

    def folder(one: str) -> ModelFolder:
        if one not in opened:
            opened[one] = open_model(one, chosen.models, config.variant)
        return opened[one]

    whole = _file(name, chosen)
    if whole is None:
        base, held = folder(name), set()
    else:
        base, held = _base_of(whole, chosen), _roles_in(whole, classes)
    found = {"model": base}
    for role, kind in classes.items():
        own = getattr(config, role).model
        if own is None:
            found[role] = base.with_file(whole) if whole is not None and role in held else base
            continue
        file = _file(own, chosen)
        if file is None:
            found[role] = folder(own)
            continue
        reason = kind.not_in_file(file)
        if reason is not None:
            raise WeightsError(f"{role}.model: {file} holds no {role}: it is {reason}", _ADVICE)
        found[role] = base.with_file(file)
    return found


_ADVICE = "A single file holds one component. Give the file of this component, or a folder in the diffusers layout."


def _file(name: str, chosen: ChosenFamily) -> Path | None:
    """Return the file of weights that a name stands for, or None if it stands for a folder.

    Raises:
        WeightsError: The name is that of a file which holds no readable weights, or of a file of weights that is not
            there.
    """
    file = Path(name).expanduser()
    if name in chosen.models or file.is_dir():
        return None
    if file.suffix in SINGLE_FILES:
        if file.is_file():
            return file
        raise WeightsError(f"model {name!r}: there is no such file", "Check the path.")
    if file.suffix in PICKLED and file.is_file():
        raise WeightsError(
            f"model {name!r}: its weights are pickled, and opening them could run code",
            "Use a version of the model with safetensors weights.",
        )
    if file.is_file():
        raise WeightsError(
            f"model {name!r}: this is {what_is(file)}, and not a model",
            f"Give a folder in the diffusers layout, a hub id, or a file of weights ({', '.join(SINGLE_FILES)}).",
        )
    return None


def _base_of(file: Path, chosen: ChosenFamily) -> ModelFolder:
    """Return the family's own model, which has what a file of weights lacks; ConfigError if the family has none."""
    if chosen.family.model is None:
        raise ConfigError(
            f"model: {file} is a single file, and everything else of the model is missing",
            f"Give a folder or a hub id as --model, and the file for its component: --set denoiser.model={file}.",
        )
    return open_model(chosen.family.model, chosen.models)


def _roles_in(file: Path, classes: Mapping[str, type[Loadable]]) -> set[str]:
    """Return the roles whose components a file of weights holds; WeightsError if there is none."""
    reasons = {role: kind.not_in_file(file) for role, kind in classes.items()}
    held = {role for role, reason in reasons.items() if reason is None}
    if not held:
        reason = next((one for one in reasons.values() if one and not one.startswith("and ")), "of an unknown kind")
        raise WeightsError(f"model {str(file)!r} holds no component of this family: it is {reason}", _ADVICE)
    return held
