"""From names to parts: classes, checkpoints and Specs; a check of every joint; and then the loading.

`compose` reads configuration files only. What does not fit is refused, with the whole table, before a weight is read.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from qframe.compose import placement
from qframe.compose.mixing import transformed
from qframe.config.schema import QUANTISABLE, ROLES, ComponentConfig, Config, QuantiseConfig
from qframe.errors import CompositionError, ConfigError, PluginError, WeightsError, bullet_list
from qframe.files.digests import FileDigests
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import (
    CodecSpec,
    Denoiser,
    DenoiserSpec,
    Encoder,
    EncoderSpec,
    LatentCodec,
    Loadable,
    Parts,
    Quantiser,
    Recipe,
    RecipeTransform,
    Sampler,
    Schedule,
    TokenCounter,
)
from qframe.plugins.hookspecs import Component, Family
from qframe.plugins.registry import Registry, load_registry
from qframe.progress import SILENT, Progress

Role = Literal["encoder", "denoiser", "codec", "schedule", "sampler"]

_INTERFACES: Mapping[str, type] = {
    "encoder": Encoder,
    "denoiser": Denoiser,
    "codec": LatentCodec,
    "schedule": Schedule,
    "sampler": Sampler,
    "quantiser": Quantiser,
}
_SPECS: Mapping[str, type] = {"encoder": EncoderSpec, "denoiser": DenoiserSpec, "codec": CodecSpec}
_STATES = {"ok": "ok", "allowed": "allowed", "mismatch": "MISMATCH"}


@attrs.frozen
class Row:
    """One joint of the composition: what one side gives and the other wants."""

    name: str
    giver: str
    gives: object
    taker: str
    wants: object
    state: Literal["ok", "allowed", "mismatch"]


@attrs.frozen(eq=False, kw_only=True)
class Composition:
    """Components that fit each other, not loaded yet.

    rows: the checks. checkpoints, classes: by role. specs: of encoder, denoiser and codec. quantisers: by role, of
    those whose weights are quantised. recipe: instantiated with the settings of the configuration.
    """

    config: Config
    family: Family
    rows: tuple[Row, ...]
    models: Mapping[str, ModelFolder]
    classes: Mapping[str, Any]
    specs: Mapping[str, Any]
    quantisers: Mapping[str, Quantiser]
    recipe: Recipe
    title: str

    def table(self) -> str:
        """The check as it is printed: one line per joint."""
        return _table(self.title, self.rows)

    @property
    def licence(self) -> str:
        """SPDX id of the weights' licence, as the family declares it."""
        return self.family.weights_licence

    @property
    def model_name(self) -> str:
        """The checkpoint, as the user named it."""
        return self.models["model"].name

    def options(self, role: str) -> Any:
        """The settings of a component: an instance of the class it declares, or None."""
        return _section(self.config, role).options

    def model(self, role: str) -> ModelFolder:
        """The checkpoint that a component comes from."""
        return self.models[role]

    def fingerprint(self, role: str) -> str:
        """sha256 over everything that the component's output depends on, quantisation included."""
        own = str(self.classes[role].fingerprint(self.model(role), self.options(role)))
        quantiser = self.quantisers.get(role)
        return own if quantiser is None else hashlib.sha256(f"{own} {quantiser.fingerprint()}".encode()).hexdigest()

    def token_counter(self) -> TokenCounter | None:
        """What counts the text tokens of prompts, as the encoder would give them; see `Encoder.token_counter`."""
        encoder: type[Encoder] = self.classes["encoder"]
        return encoder.token_counter(self.model("encoder"), self.options("encoder"))

    def ingredients(self, role: str, progress: Progress = SILENT, digests: FileDigests | None = None) -> dict[str, str]:
        """What a component's output depends on, by name, the dtype it computes in among them: the cache's keys hold it.

        progress: hears of large weights that are read. digests: of files that were read before.
        """
        model = attrs.evolve(self.model(role), progress=progress, digests=digests)
        named = self.classes[role].ingredients(model, self.options(role))
        quantiser = self.quantisers.get(role)
        quantised = {} if quantiser is None else {"quantised": quantiser.fingerprint()}
        return {**named, **quantised, "dtype": str(self.dtype(role)).removeprefix("torch.")}

    def device(self, role: str) -> torch.device:
        """Where a component computes: on its own device, else one of `devices`, else `device`.

        ConfigError if this machine has no such device.
        """
        own = _section(self.config, role).device
        if own is not None:
            return find_device(f"{role}.device", own)
        if role in self._spread:
            return self._spread[role]
        return find_device("device", self.config.device)

    @functools.cached_property
    def outlines(self) -> Mapping[str, Any]:
        """Encoder, denoiser and codec on the meta device, as far as their shapes can be told without weights."""
        found = {}
        for role in placement.ORDER:
            dtype = self.dtype(role) if not self.config.devices else self._dtype(role, self._listed[0])
            outline = self.outline(role, dtype)
            if outline is not None:
                found[role] = outline
        return found

    def outline(self, role: str, dtype: torch.dtype) -> Any:
        """A component of its own on the meta device, to try things on; None where its shapes cannot be told."""
        return self.classes[role].outline(self.model(role), self.options(role), dtype=dtype)

    def weights(self, role: str) -> int | None:
        """Bytes of a component's weights once loaded, quantised where they will be; None where it cannot be told."""
        outline = self.outlines.get(role)
        return None if outline is None else placement.network_bytes(outline.network, self.quantisers.get(role))

    @functools.cached_property
    def _listed(self) -> tuple[torch.device, ...]:
        return tuple(find_device("devices", name) for name in self.config.devices)

    @functools.cached_property
    def _spread(self) -> Mapping[str, torch.device]:
        """The components that `devices` has to place."""
        if not self._listed:
            return {}
        rooms = {device: placement.room_on(device).free for device in self._listed}
        sizes = {}
        for role in placement.ORDER:
            own, size = _section(self.config, role).device, self.weights(role) or 0
            if own is None:
                sizes[role] = size
            elif (device := find_device(f"{role}.device", own)) in rooms:
                rooms[device] -= size
        return placement.assign(sizes, rooms)

    def dtype(self, role: str) -> torch.dtype:
        """The dtype of a component's weights."""
        return self._dtype(role, self.device(role))

    def _dtype(self, role: str, device: torch.device) -> torch.dtype:
        name = _section(self.config, role).dtype or self.config.dtype
        if name == "auto":
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]

    def load(self, *roles: Literal["encoder", "codec", "denoiser"] | str, offloaded: bool = False) -> Parts:
        """The parts, of encoder, codec and denoiser only those named; schedule and sampler always.

        Sets torch's number of CPU threads, where the configuration does. offloaded: weights stay on the CPU, and
        `placement.place` has the next word.
        """
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        loaded = {f"loaded_{role}": self._load(role, offloaded=offloaded) for role in roles}
        options = self.options("sampler")
        sampler = self.classes["sampler"]
        return Parts(
            **{f"{role}_spec": spec for role, spec in self.specs.items()},
            schedule=self._load("schedule"),
            sampler=sampler() if options is None else sampler(options),
            model=self.models["model"],
            **loaded,
        )

    def _load(self, role: str, *, offloaded: bool = False) -> Any:
        device, quantiser = placement.CPU if offloaded else self.device(role), self.quantisers.get(role)
        # What is to be quantised never lies on the device whole: that is what it would not fit on.
        first = device if quantiser is None else placement.CPU
        part = self.classes[role].load(self.model(role), self.options(role), device=first, dtype=self.dtype(role))
        if quantiser is not None:
            if part.network is None:
                raise ConfigError(
                    f"{role}.quantise: {role} {_section(self.config, role).use!r} shows no network to quantise",
                    "Leave it out, or choose another component.",
                )
            quantiser.quantise(part.network)
            part.network.to(device)
        return part


def compose(config: Config, registry: Registry | None = None) -> Composition:
    """The composition of a configuration, checked. No weight is read.

    CompositionError holds the whole table if a joint does not fit and `compose.allow` does not name it.
    WeightsError: the checkpoint lacks a component, or holds one of another kind. PluginError: a plugin's class
    cannot be imported or does not implement its interface.
    """
    registry = load_registry() if registry is None else registry
    family = registry.family(config.family)
    components = {role: registry.component(role, _section(config, role).use) for role in ROLES}
    classes = {role: _class(registry, component) for role, component in components.items()}
    models = _models(config, family, registry)
    specs = {}
    for role, spec in _SPECS.items():
        specs[role] = classes[role].describe(models[role], _section(config, role).options)
        if not isinstance(specs[role], spec):
            component = components[role]
            raise PluginError(
                f"plugin {registry.plugin_of(component)!r}: {component.target}.describe returned a "
                f"{type(specs[role]).__name__}, expected a {spec.__name__}"
            )
    quantisers = {role: found for role in QUANTISABLE if (found := _quantiser(config, role, registry)) is not None}
    if "denoiser" in quantisers and config.train.mode == "full":
        raise ConfigError(
            "denoiser.quantise: quantised weights are frozen, and train.mode = 'full' trains them",
            "Train a LoRA (train.mode = 'lora'), or leave denoiser.quantise out.",
        )
    if config.offload == "group":
        placement.check_groups(list(quantisers))
    recipe = recipe_class(family, registry)(config.recipe, models["model"])
    rows = _rows(specs["encoder"], specs["codec"], specs["denoiser"], recipe, config.compose.allow)
    title = ", ".join(
        f"{role} {components[role].name!r} (plugin {registry.plugin_of(components[role])})"
        for role in ("denoiser", "codec", "encoder")
    )
    mismatches = [row.name.replace(" ", "_") for row in rows if row.state == "mismatch"]
    if mismatches:
        names_only = set(mismatches) <= {"latent_space", "text_space"}  # sizes cannot be talked away
        raise CompositionError(
            f"cannot compose: {_table(title, rows)}",
            "Choose components of one family"
            + (f", or, where you know better, --set compose.allow='{json.dumps(mismatches)}'." if names_only else "."),
        )
    return Composition(
        config=config,
        family=family,
        rows=rows,
        models=models,
        classes=classes,
        specs=specs,
        quantisers=quantisers,
        recipe=recipe,
        title=title,
    )


def recipe_class(family: Family, registry: Registry) -> type[Recipe]:
    """The recipe of a family, with its transforms around it. PluginError names a class that does not fit."""
    owner = registry.recipe_family(family)
    recipe: type[Recipe] = registry.resolve(owner, "recipe")
    _check_class(recipe, Recipe, owner.recipe, registry.plugin_of(owner))
    for name in family.transforms:
        component = registry.component("transform", name)
        transform: type[RecipeTransform] = registry.resolve(component)
        _check_class(transform, RecipeTransform, component.target, registry.plugin_of(component))
        recipe = transformed(recipe, transform)
    return recipe


def find_device(key: str, name: str) -> torch.device:
    """The device of a configuration key; "auto" is cuda (under torchrun one of its own), else mps, else cpu.

    ConfigError says what there is.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), *available]
    if name == "auto":
        # The processes of torchrun on one machine take a GPU each.
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(available[local % torch.cuda.device_count() if torch.cuda.is_available() else 0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: {name!r} is not a device", f"Known here: auto, {', '.join(available)}.") from error
    found = device.type in {item.partition(":")[0] for item in available}
    if not found or (device.index is not None and device.type == "cuda" and str(device) not in available):
        raise ConfigError(
            f"{key}: this machine has no device {name!r}", f"Available: {', '.join(available)}. Or say auto."
        )
    return device


def _section(config: Config, role: str) -> ComponentConfig:
    section: ComponentConfig = getattr(config, role)
    return section


def _class(registry: Registry, component: Component) -> Any:
    found = registry.resolve(component)
    _check_class(found, _INTERFACES[component.kind], component.target, registry.plugin_of(component))
    return found


def _quantiser(config: Config, role: str, registry: Registry) -> Quantiser | None:
    settings: QuantiseConfig = getattr(config, role).quantise
    if settings.use is None:
        return None
    quantiser: Quantiser = _class(registry, registry.component("quantiser", settings.use))(settings.options)
    return quantiser


def _check_class(found: object, interface: type, target: str, plugin: str) -> None:
    if not (isinstance(found, type) and issubclass(found, interface)):
        raise PluginError(f"plugin {plugin!r}: {target} is no subclass of qframe.interfaces.{interface.__name__}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise PluginError(f"plugin {plugin!r}: {target} lacks methods of {interface.__name__}: {missing}")


def _models(config: Config, family: Family, registry: Registry) -> dict[str, ModelFolder]:
    """By role, and "model": the one of the whole configuration. Each name is opened once."""
    opened: dict[str, ModelFolder] = {}

    def get(name: str) -> ModelFolder:
        if name not in opened:
            opened[name] = open_model(name, registry)
        return opened[name]

    name = config.model or family.model
    if name is None:
        bundled = ", ".join(component.name for component in registry.components("model"))
        raise ConfigError(
            f"model: none is given, and family {family.name!r} has none of its own",
            "Give --model: a folder in the diffusers layout, a hub id"
            + (f", or one that ships with a plugin ({bundled})." if bundled else "."),
        )
    return {"model": get(name)} | {
        role: get(_section(config, role).model or name) for role in ROLES if issubclass(_INTERFACES[role], Loadable)
    }


def open_model(name: str, registry: Registry) -> ModelFolder:
    """The checkpoint of a registered name, a folder or a hub id."""
    for component in registry.components("model"):
        if component.name == name:
            locate: Callable[[], str | Path] = registry.resolve(component)
            folder = Path(locate())
            if not folder.is_dir():
                raise WeightsError(
                    f"model {name!r} of plugin {registry.plugin_of(component)!r}: {folder} is no folder",
                    "Reinstall the plugin.",
                )
            return ModelFolder(name, folder)
    try:
        return ModelFolder.open(name)
    except WeightsError as error:
        bundled = ", ".join(component.name for component in registry.components("model"))
        if bundled and error.hint:
            raise WeightsError(error.message, f"{error.hint} Bundled: {bundled}.") from error
        raise


def _rows(
    encoder: EncoderSpec, codec: CodecSpec, denoiser: DenoiserSpec, recipe: Recipe, allow: tuple[str, ...]
) -> tuple[Row, ...]:
    rows: list[Row] = []

    def check(name: str, giver: str, gives: object, taker: str, wants: object) -> None:
        fits = gives == wants
        state: Literal["ok", "allowed", "mismatch"] = "ok" if fits else "mismatch"
        if not fits and name.replace(" ", "_") in allow:
            state = "allowed"
        rows.append(Row(name, giver, gives, taker, wants, state))

    tokens = codec.channels * denoiser.patch**2
    check("latent space", "codec", codec.latent_space, "denoiser", denoiser.latent_space)
    check("token channels", "codec", tokens, "denoiser", denoiser.token_channels)
    check("text space", "encoder", encoder.text_space, "denoiser", denoiser.text_space)
    check("text width", "encoder", encoder.width, "denoiser", denoiser.text_width)
    if recipe.pictures:
        check("pictures", "encoder", "yes" if encoder.pictures else "no", "recipe", "yes")
    if recipe.references:
        check("references", "denoiser", "yes" if denoiser.references else "no", "recipe", "yes")
    return tuple(rows)


def _table(title: str, rows: tuple[Row, ...]) -> str:
    names = max(len(row.name) for row in rows)
    gives = max(len(f"{row.giver} gives {row.gives}") for row in rows)
    lines = [
        f"{_STATES[row.state]:<8} {row.name:<{names}}  {f'{row.giver} gives {row.gives}':<{gives}}  "
        f"{row.taker} wants {row.wants}"
        for row in rows
    ]
    return f"{title}\n{bullet_list(lines)}"
