"""Composes a configuration: looks up its components, opens their model folders and checks that they fit.

`compose` reads the configuration files of the model folders, and no weights. It refuses components that do not fit, in
an error that shows the result of every check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qframe.compose.absent import absent_encoder
from qframe.compose.composition import Composition
from qframe.compose.guard import guard_recipe
from qframe.compose.joints import check_joints, refuse_mismatches
from qframe.compose.mixing import transformed
from qframe.compose.models import open_models
from qframe.config.choices import choose
from qframe.config.schema import QUANTISABLE, ROLES, Config
from qframe.config.strict import unstructure
from qframe.errors import ConfigError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.files.weight_header import GGUF
from qframe.interfaces import (
    Denoiser,
    Encoder,
    LatentCodec,
    Loadable,
    Quantiser,
    Recipe,
    RecipeTransform,
    Sampler,
    Schedule,
)
from qframe.interfaces.parts import SPECS, checked_instance, spec_of
from qframe.plugins.offers import ChosenFamily
from qframe.plugins.registry import Registry, load_registry

_INTERFACES: Mapping[str, type] = {
    "encoder": Encoder,
    "denoiser": Denoiser,
    "codec": LatentCodec,
    "schedule": Schedule,
    "sampler": Sampler,
}


def compose(
    config: Config, registry: Registry | None = None, *, given: Mapping[str, Any] = MappingProxyType({})
) -> Composition:
    """Look up the components that a configuration names, and check that they fit each other. No weights are read.

    Args:
        config: The configuration.
        registry: The plugins to choose from; by default those that are installed.
        given: Instances by role, which are used in the place of the components that the configuration names.

    Raises:
        CompositionError: Two components differ in a property on which they must agree, and `compose.allow` does not
            name this property. The message shows the result of every check.
        ConfigError: The configuration names an unknown component or no model, or settings that exclude each other.
        WeightsError: A model folder lacks a component, or holds a component of another class.
        PluginError: A plugin's class cannot be imported, or does not implement its interface.
    """
    registry = load_registry() if registry is None else registry
    _check_given(config, given)
    chosen = choose(unstructure(config), registry)
    offers = {role: chosen.component(role, "use") for role in ROLES}
    classes = {role: offer.implementation(_INTERFACES[role]) for role, offer in offers.items() if role not in given}
    loaded = {role: kind for role, kind in classes.items() if issubclass(kind, Loadable)}
    models = open_models(config, chosen, loaded)
    models |= dict.fromkeys(given, models["model"])
    missing = None if "encoder" in given else classes["encoder"].absent(models["encoder"], config.encoder.options)
    classes |= {role: type(part) for role, part in given.items()}

    def spec(role: str) -> Any:
        if role in given:
            return spec_of(role, given[role], models[role])
        return _spec(config, chosen, role, classes[role], models[role])

    if missing is not None:
        classes["encoder"] = absent_encoder(missing, spec("denoiser"))
    _check_blocks(config, classes)
    specs = {role: spec(role) for role in SPECS}
    if "schedule" not in given:  # so that it is refused before loading
        classes["schedule"].describe(models["schedule"], config.schedule.options)
    quantisers = _quantisers(config, chosen, models)
    recipe = recipe_class(chosen)(config.recipe, models["model"])
    made_by = f"the recipe of family {chosen.family.name!r} (plugin {chosen.recipe.plugin!r})"
    guard_recipe(recipe, specs["denoiser"], made_by)
    pipelines = _pipelines(models["model"], chosen)
    joints = check_joints(specs["encoder"], specs["codec"], specs["denoiser"], recipe, config.compose.allow, pipelines)
    title = _title(offers, given)
    refuse_mismatches(title, joints, lambda: _serving(pipelines, registry))
    return Composition(
        config=config,
        family=chosen.family,
        joints=joints,
        models=models,
        classes=classes,
        specs=specs,
        quantisers=quantisers,
        recipe=recipe,
        title=title,
        given=given,
        plugins={role: offer.plugin for role, offer in offers.items() if role not in given},
    )


def recipe_class(chosen: ChosenFamily) -> type[Recipe]:
    """Return the class of a family's recipe, with the transforms of the family put around it.

    Raises:
        PluginError: A class cannot be imported, or is no recipe or no transform.
    """
    recipe: type[Recipe] = chosen.recipe.implementation(Recipe, "recipe")
    for offer in chosen.transforms:
        recipe = transformed(recipe, offer.implementation(RecipeTransform))
    return recipe


def _spec(config: Config, chosen: ChosenFamily, role: str, kind: Any, model: ModelFolder) -> Any:
    """Return the Spec by which a component describes itself. Raises PluginError if it returns another type."""
    spec, wanted = kind.describe(model, getattr(config, role).options), SPECS[role]
    if not isinstance(spec, wanted):
        offer = chosen.component(role, "use")
        raise PluginError(
            f"plugin {offer.plugin!r}: {offer.declared.target}.describe returned a {type(spec).__name__}, "
            f"expected a {wanted.__name__}"
        )
    return spec


def _title(offers: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the names of denoiser, codec and encoder, with the plugins that offer them."""
    return ", ".join(
        f"{role} {type(given[role]).__name__} (an instance)"
        if role in given
        else f"{role} {offers[role].declared.name!r} (plugin {offers[role].plugin})"
        for role in ("denoiser", "codec", "encoder")
    )


def _check_given(config: Config, given: Mapping[str, Any]) -> None:
    """Raise ConfigError if an instance cannot play its role, or the configuration would change its weights."""
    for role, part in given.items():
        if role not in _INTERFACES:
            raise ConfigError(f"components: no role {role!r}", f"Known: {', '.join(_INTERFACES)}.")
        checked_instance(role, part)
        settings = getattr(config, role)
        changes = role in QUANTISABLE and (settings.quantise.use is not None or settings.resident_blocks is not None)
        if changes:
            raise ConfigError(
                f"{role}: an instance is used as it is, and the configuration quantises or streams the {role}",
                f"Leave out {role}.quantise and {role}.resident_blocks.",
            )


def _pipelines(model: ModelFolder, chosen: ChosenFamily) -> tuple[Sequence[str], Sequence[str]] | None:
    """Return the pipelines that a model folder says it was made for, and those that the family serves.

    A model that was made for several says so in qframe.json, others in model_index.json. Returns None if either says
    nothing, and for a model that ships with a plugin, about which the plugin decides.
    """
    served = chosen.family.pipelines
    if model.name in chosen.models or not served:
        return None
    named = model.read_json("qframe.json").get("pipelines") if model.has("qframe.json") else None
    if named is None and model.has("model_index.json"):
        named = [model.pipeline_config.get("_class_name")]
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        return None
    return named, served


def _serving(pipelines: tuple[Sequence[str], Sequence[str]] | None, registry: Registry) -> list[str]:
    """Return the names of the families that serve one of the pipelines which a model folder names."""
    named = set(pipelines[0]) if pipelines else set()
    return [family.name for family in registry.families() if named & set(family.pipelines)]


def _check_blocks(config: Config, classes: Mapping[str, Any]) -> None:
    """Raise ConfigError if blocks of a network are to be streamed, and its component does not say what they are."""
    for role in QUANTISABLE:
        if getattr(config, role).resident_blocks is not None and not classes[role].block_lists():
            raise ConfigError(
                f"{role}.resident_blocks: {role} {getattr(config, role).use!r} names no repeated blocks to stream",
                f"Leave it out: then all weights of the {role} are on its device.",
            )


def _quantisers(config: Config, chosen: ChosenFamily, models: Mapping[str, ModelFolder]) -> dict[str, Quantiser]:
    """Return the configured quantiser of each role. Raises ConfigError if other settings exclude quantised weights."""
    found = {}
    for role in QUANTISABLE:
        settings = getattr(config, role).quantise
        if settings.use is not None:
            file = models[role].file
            if file is not None and file.suffix == GGUF:
                raise ConfigError(f"{role}.quantise: the weights in {file} are quantised already", "Leave it out.")
            kind = chosen.component(role, "quantise", "use").implementation(Quantiser)
            found[role] = kind(settings.options)
    if "denoiser" in found and config.train.mode == "full":
        raise ConfigError(
            "denoiser.quantise: quantised weights are frozen, and train.mode = 'full' trains them",
            "Train a LoRA (train.mode = 'lora'), or leave denoiser.quantise out.",
        )
    return found
