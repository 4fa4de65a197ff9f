"""The value that `compose` returns: components that fit each other, and questions that they answer before loading."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
import torch

from qframe.compose import devices, placement
from qframe.compose.culprit import check_loaded
from qframe.compose.guard import guard, guard_sampler
from qframe.compose.joints import Joint, check_joints, joint_table, refuse_mismatches
from qframe.compose.loading import Quantisation, load_component
from qframe.compose.stored_weights import StoredWeights, remembered_digests, weights_key
from qframe.compose.streaming import stream, streamed_bytes
from qframe.config.folders import quantised_folder
from qframe.config.schema import Config
from qframe.errors import ConfigError, QframeError
from qframe.files.digests import FileDigests
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Encoder, Loadable, Parts, Quantiser, Recipe, TokenCounter
from qframe.plugins.hookspecs import Family
from qframe.plugins.offers import reason
from qframe.progress import SILENT, Progress

log = logging.getLogger(__name__)


@attrs.frozen(eq=False, kw_only=True)
class Composition:
    """The components of a configuration, which fit each other and are not loaded yet.

    Attributes:
        config: The configuration that the composition was made from.
        family: The family that the configuration chooses.
        joints: The properties on which two components must agree, with the result of each check.
        models: The model folder of each component by role, and under "model" the one of the whole configuration.
        classes: The class of each component, by role.
        specs: The Specs of encoder, denoiser and codec, by role.
        quantisers: The quantiser of the encoder's or the denoiser's weights, by role. A role whose weights are not
            quantised is left out.
        recipe: The recipe of the family, made with the settings of the configuration.
        title: The first line of what `table` returns: names and plugins of denoiser, codec and encoder.
        given: Instances by role, which are used as they are, in the place of components that are loaded.
        plugins: The name of the plugin that offers the component in each role.
        imagined: The device of all components, which this machine need not have, where a run is forecast for another
            machine; None for the devices of the configuration.
    """

    config: Config
    family: Family
    joints: tuple[Joint, ...]
    models: Mapping[str, ModelFolder]
    classes: Mapping[str, Any]
    specs: Mapping[str, Any]
    quantisers: Mapping[str, Quantiser]
    recipe: Recipe
    title: str
    given: Mapping[str, Any] = MappingProxyType({})
    plugins: Mapping[str, str] = attrs.field(factory=dict)
    imagined: torch.device | None = None
    _made_of: dict[str, dict[str, str]] = attrs.field(factory=dict, init=False, repr=False)
    _told: set[str] = attrs.field(factory=set, init=False, repr=False)  # what is said once was said of these

    def __repr__(self) -> str:
        return f"Composition({self.family.name!r}, {self.model_name!r}, {self.title})"

    def table(self) -> str:
        """Return the results of the checks as `qframe compose` prints them: the title, and one line for each joint."""
        return joint_table(self.title, self.joints)

    def check(self, parts: Parts) -> None:
        """Raise CompositionError if components that were put into a pipeline do not fit the others."""
        specs: dict[str, Any] = {
            "encoder": parts.encoder_spec,
            "codec": parts.codec_spec,
            "denoiser": parts.denoiser_spec,
        }
        if any(spec is not self.specs[role] for role, spec in specs.items()):
            found = check_joints(**specs, recipe=self.recipe, allow=self.config.compose.allow)
            refuse_mismatches("the components of this pipeline", found)

    @property
    def licence(self) -> str:
        """The SPDX id of the weights' licence, as the family declares it."""
        return self.family.weights_licence

    @property
    def model_name(self) -> str:
        """The name that the user gave the model: a folder, a hub id or a registered name."""
        return self.models["model"].name

    def options(self, role: str) -> Any:
        """Return the settings of the component in a role.

        They are an instance of the class that the component's plugin declares for them; None if it declares no class.
        """
        return getattr(self.config, role).options

    def about(self, role: str) -> str:
        """Return the words by which messages name the component in a role: its name, and the plugin that offers it."""
        return f"{role} {getattr(self.config, role).use!r} (plugin {self.plugins.get(role, '?')!r})"

    def model(self, role: str) -> ModelFolder:
        """Return the model folder that the component in a role is loaded from."""
        return self.models[role]

    def token_counter(self, *, cut: bool = True) -> TokenCounter | None:
        """Return a function that counts the text tokens which the encoder would give for a prompt and its pictures.

        Returns None if the encoder cannot count without its weights; see `Encoder.token_counter`, also for `cut`.
        """
        encoder: type[Encoder] = self.classes["encoder"]
        return encoder.token_counter(self.model("encoder"), self.options("encoder"), cut=cut)

    def ingredients(self, role: str, progress: Progress = SILENT, digests: FileDigests | None = None) -> dict[str, str]:
        """Return, by name, everything that a component's output depends on. The cache's keys are made of it.

        This is what the component's own `ingredients` returns, its class, the quantisation of its weights, and their
        dtype. The class is among them because the ingredients of two classes may be equal by chance. The files of
        weights are read to compute their digests, except for files whose digests `digests` holds, and except for a role
        that was asked for before.

        Args:
            role: The role of the component.
            progress: Receives how far the reading of large files is.
            digests: Digests of files that were read before.
        """
        if role in self.given:
            raise ConfigError(
                f"{role}: nobody knows what the output of an instance depends on, so that it cannot be stored",
                "Give its class to qframe.register, and name it in the configuration.",
            )
        if role not in self._made_of:
            model = attrs.evolve(self.model(role), progress=progress, digests=digests)
            kind = self.classes[role]
            named = kind.ingredients(model, self.options(role))
            quantiser = self.quantisers.get(role)
            quantised = {} if quantiser is None else {"quantised": quantiser.ingredient()}
            made_by = {"class": f"{kind.__module__}:{kind.__qualname__}"}
            dtype = str(self.dtype(role)).removeprefix("torch.")
            self._made_of[role] = {**named, **made_by, **quantised, "dtype": dtype}
        return dict(self._made_of[role])

    def remember_ingredients(self, ingredients: Mapping[str, Mapping[str, str]]) -> None:
        """Take over what `ingredients` returned in another process, by role, so that this one need not read weights."""
        self._made_of.update({role: dict(named) for role, named in ingredients.items()})

    def quantised_weights(
        self, role: str, progress: Progress = SILENT, digests: FileDigests | None = None
    ) -> StoredWeights | None:
        """Return where the quantised weights of a role are stored; files are read as for `ingredients`.

        Returns None if the role's weights are not quantised, or are quantised at every start: because the configuration
        says so (key `quantise.store`), or because the quantiser cannot store them, which is told once.
        """
        quantiser = self.quantisers.get(role)
        if quantiser is None or not getattr(self.config, role).quantise.store:
            return None
        name = getattr(self.config, role).quantise.use
        if not quantiser.storable:
            if name not in self._told:
                progress.note(f"quantiser {name!r} cannot store what it quantised, and quantises at every start")
            self._told.add(name)
            return None
        root = quantised_folder(self.config)
        known = digests or remembered_digests(root)
        ingredients = self.ingredients(role, progress, known)
        known.save()
        about = {"role": role, "model": self.model(role).name, "quantiser": name, "ingredients": ingredients}
        return StoredWeights(root=root, key=weights_key(ingredients), about=about, progress=progress)

    def device(self, role: str) -> torch.device:
        """Return the device that the component in a role computes on.

        It is the device in the configuration's section of that role, else one of those in `devices`, else `device`.

        Raises:
            ConfigError: This machine has no such device.
        """
        if self.imagined is not None:
            return self.imagined
        if role in self.given and isinstance(self.given[role], Loadable):
            return self.given[role].execution_device  # type: ignore[no-any-return]
        return self._spread[role] if role in self._spread else devices.configured_device(self.config, role)

    def dtype(self, role: str) -> torch.dtype:
        """Return the dtype that the weights of the component in a role have."""
        return devices.dtype_on(self.config, role, self.device(role))

    @functools.cached_property
    def outlines(self) -> Mapping[str, Any]:
        """Encoder, denoiser and codec by role, with their networks on the meta device: shapes without weights.

        A component whose shapes are known only from its weights is left out. The components are shared by all callers;
        a caller that changes one asks `outline` for its own.
        """
        listed = () if self.imagined is not None else devices.listed_devices(self.config)
        found = {}
        for role in placement.ORDER:
            # Where the devices of `devices` are assigned by size, sizes have to be known before the device is.
            dtype = devices.dtype_on(self.config, role, listed[0]) if listed else self.dtype(role)
            outline = self.outline(role, dtype)
            if outline is not None:
                found[role] = outline
        return found

    def with_config(self, config: Config) -> Composition:
        """Return this composition with another configuration, of which its components are the same."""
        found = attrs.evolve(self, config=config)
        object.__setattr__(found, "outlines", self.outlines)  # making them takes seconds
        return found

    def sharing(self, other: Composition) -> Composition:
        """Return this composition with those outlines of another one that are the same."""
        same = {
            role: outline
            for role, outline in other.outlines.items()
            if self.classes[role] is other.classes[role]
            and self.models[role].folder == other.models[role].folder
            and self.options(role) == other.options(role)
            and not self.config.devices
            and self.dtype(role) == other.dtype(role)
        }
        missing = {role: self.outline(role, self.dtype(role)) for role in placement.ORDER if role not in same}
        found = attrs.evolve(self)
        merged = {**same, **{role: outline for role, outline in missing.items() if outline is not None}}
        object.__setattr__(found, "outlines", merged)
        return found

    def outline(self, role: str, dtype: torch.dtype) -> Any:
        """Return a new component with its network on the meta device; the caller may change it.

        Returns None if the shapes of the component are known only from its weights.
        """
        if role in self.given:
            return None
        try:
            return self.classes[role].outline(self.model(role), self.options(role), dtype=dtype)
        except (QframeError, MemoryError):
            raise
        # A plugin's network may need values that shapes do not have. A run must not end because of its forecast.
        except Exception as error:  # noqa: BLE001
            if role not in self._told:
                log.warning("the %s has no outline, so its memory is not estimated: %s", role, reason(error))
            self._told.add(role)
            return None

    def weights(self, role: str) -> int | None:
        """Return how many bytes a component's weights take on its device once they are loaded.

        They are quantised where that is configured. If blocks are streamed, the bytes are those of the slots and of
        everything that is resident.

        Returns None if the shapes of the component are known only from its weights.
        """
        outline, quantiser = self.outlines.get(role), self.quantisers.get(role)
        if outline is None:
            return None
        resident = self.resident_blocks(role)
        if resident is not None and (self.config.devices or self.device(role).type != "cpu"):
            return streamed_bytes(outline, resident, quantiser).device
        return placement.network_bytes(outline.network, quantiser)

    def resident_blocks(self, role: str) -> int | None:
        """Return how many blocks of a role's network keep their weights on the device.

        None means that the configuration does not say, and that the role has no such key.
        """
        found: int | None = getattr(getattr(self.config, role), "resident_blocks", None)
        return found

    def maps_weights(self, role: str) -> bool:
        """Whether loading the component in a role maps its weights from the files of its model folder.

        They are if they stay on the CPU as the files have them: not converted to another dtype, and not quantised.
        """
        if role in self.given or role in self.quantisers or self.device(role).type != "cpu":
            return False
        return bool(self.classes[role].stored_dtype(self.model(role), self.options(role)) == self.dtype(role))

    @functools.cached_property
    def _spread(self) -> Mapping[str, torch.device]:
        """The devices of the components that the key `devices` has to place, by role."""
        if not self.config.devices:
            return {}
        return devices.spread(self.config, {role: self.weights(role) or 0 for role in placement.ORDER})

    def load(self, *roles: str, offloaded: bool = False, as_stored: bool = False, progress: Progress = SILENT) -> Parts:
        """Load the named components; schedule and sampler are always among the parts.

        If the configuration names a number of CPU threads (`threads`), torch is set to it as well.

        Args:
            roles: Those of "encoder", "codec" and "denoiser" that are needed.
            offloaded: Whether the weights stay on the CPU. The caller then calls `qframe.compose.placement.place`,
                which installs the hooks that move them. If they do not, they are moved to their devices, but the blocks
                of a network are streamed if `resident_blocks` of its role says how many are not.
            as_stored: Whether the weights get the dtype of their files, if that is one dtype, and not the configured
                one. The caller then converts them.
            progress: Is told what the quantisers make ready before anything is loaded, how far quantising is, and what
                is streamed.
        """
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        if roles:
            for role, quantiser in self.quantisers.items():  # all of them: the next role may be loaded hours later
                quantiser.prepare(self.device(role), progress)
        loaded = {f"loaded_{role}": self._load_or_stream(role, progress, offloaded, as_stored) for role in roles}
        options = self.options("sampler")
        kind = self.classes["sampler"]
        sampler = self.given.get("sampler")
        if sampler is None:
            sampler = kind() if options is None else kind(options)
            guard_sampler(sampler, self.about("sampler"))
        return Parts(
            **{f"{role}_spec": spec for role, spec in self.specs.items()},
            schedule=self._load("schedule"),
            sampler=sampler,
            model=self.models["model"],
            **loaded,
        )

    def _load_or_stream(self, role: str, progress: Progress, offloaded: bool, as_stored: bool) -> Any:
        """Load a component; if the configuration says so, its weights stay on the CPU, and its blocks are streamed."""
        resident, device = self.resident_blocks(role), self.device(role)
        if role in self.given or resident is None or offloaded or device.type == "cpu":
            return self._load(role, progress, offloaded, as_stored)
        part = self._load(role, progress, True, as_stored)
        streamed = stream(part, device, resident)
        if streamed is None:
            part.network.to(device)
        else:
            progress.note(streamed.about)
        return part

    def _load(self, role: str, progress: Progress = SILENT, offloaded: bool = False, as_stored: bool = False) -> Any:
        if role in self.given:
            return self.given[role]
        settings, device = getattr(self.config, role), self.device(role)
        dtype, quantisation = devices.dtype_on(self.config, role, device), None
        if role in self.quantisers:
            store = self.quantised_weights(role, progress)
            quantisation = Quantisation(quantiser=self.quantisers[role], device=device, store=store, progress=progress)
        elif as_stored:
            dtype = self.classes[role].stored_dtype(self.models[role], settings.options) or dtype
        part = load_component(
            self.classes[role],
            self.models[role],
            settings.options,
            quantisation,
            device=placement.CPU if offloaded else device,
            dtype=dtype,
            role=role,
            name=settings.use,
        )
        if part.network is not None:
            check_loaded(role, part.network, self.models[role].name)
        guard(role, part, self.specs.get(role), self.about(role))
        part.spec = self.specs.get(role)
        return part
