"""The value that `compose` returns: components that fit each other, and what can be asked of them before loading."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from qframe.compose import devices, placement
from qframe.compose.joints import Joint, joint_table
from qframe.compose.loading import load_component
from qframe.config.schema import Config
from qframe.files.digests import FileDigests
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Encoder, Parts, Quantiser, Recipe, TokenCounter
from qframe.plugins.hookspecs import Family
from qframe.progress import SILENT, Progress


@attrs.frozen(eq=False, kw_only=True)
class Composition:
    """Components that fit each other and are not loaded yet.

    Attributes:
        config: The configuration that the composition was made from.
        family: The family that the configuration chooses.
        joints: The checks that the composition passed.
        models: The model folder of each component by role, and under "model" the one of the whole configuration.
        classes: The class of each component, by role.
        specs: The Specs of encoder, denoiser and codec, by role.
        quantisers: By role, what quantises the weights of encoder or denoiser; a role without one is left out.
        recipe: The recipe of the family, made with the settings of the configuration.
        title: The first line of the table: names and plugins of denoiser, codec and encoder.
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

    def table(self) -> str:
        """The checks as `qframe compose` prints them, one line for each joint."""
        return joint_table(self.title, self.joints)

    @property
    def licence(self) -> str:
        """The SPDX id of the weights' licence, as the family declares it."""
        return self.family.weights_licence

    @property
    def model_name(self) -> str:
        """The name that the user gave the model: a folder, a hub id or a registered name."""
        return self.models["model"].name

    def options(self, role: str) -> Any:
        """The settings of a component: an instance of the class that it declares, None if it declares none."""
        return getattr(self.config, role).options

    def model(self, role: str) -> ModelFolder:
        """The model folder that a component is loaded from."""
        return self.models[role]

    def token_counter(self) -> TokenCounter | None:
        """What counts the text tokens of a prompt as the encoder would produce them; see `Encoder.token_counter`."""
        encoder: type[Encoder] = self.classes["encoder"]
        return encoder.token_counter(self.model("encoder"), self.options("encoder"))

    def ingredients(self, role: str, progress: Progress = SILENT, digests: FileDigests | None = None) -> dict[str, str]:
        """Everything that a component's output depends on, by name, as the keys of the cache hold it.

        These are the ingredients that the component names, the quantisation of its weights and its dtype. Files of
        weights are read for it, unless `digests` remembers them.

        Args:
            role: The role of the component.
            progress: Is told how far the reading of large files is.
            digests: Digests of files that were read before.
        """
        model = attrs.evolve(self.model(role), progress=progress, digests=digests)
        named = self.classes[role].ingredients(model, self.options(role))
        quantiser = self.quantisers.get(role)
        quantised = {} if quantiser is None else {"quantised": quantiser.ingredient()}
        return {**named, **quantised, "dtype": str(self.dtype(role)).removeprefix("torch.")}

    def device(self, role: str) -> torch.device:
        """The device that a component computes on: its own one, else one of `devices`, else `device`.

        Raises:
            ConfigError: This machine has no such device.
        """
        return self._spread[role] if role in self._spread else devices.configured_device(self.config, role)

    def dtype(self, role: str) -> torch.dtype:
        """The dtype of a component's weights."""
        return devices.dtype_on(self.config, role, self.device(role))

    @functools.cached_property
    def outlines(self) -> Mapping[str, Any]:
        """Encoder, denoiser and codec with their networks on the meta device: shapes without weights.

        A component whose shapes cannot be told without its weights is left out.
        """
        listed = devices.listed_devices(self.config)
        found = {}
        for role in placement.ORDER:
            # Where the devices of `devices` are assigned by size, sizes have to be known before the device is.
            dtype = devices.dtype_on(self.config, role, listed[0]) if listed else self.dtype(role)
            outline = self.outline(role, dtype)
            if outline is not None:
                found[role] = outline
        return found

    def outline(self, role: str, dtype: torch.dtype) -> Any:
        """A new component with its network on the meta device, which the caller may change.

        None where the shapes of the component cannot be told without its weights.
        """
        return self.classes[role].outline(self.model(role), self.options(role), dtype=dtype)

    def weights(self, role: str) -> int | None:
        """Bytes of a component's weights once they are loaded and, where configured, quantised.

        None where the shapes of the component cannot be told without its weights.
        """
        outline = self.outlines.get(role)
        return None if outline is None else placement.network_bytes(outline.network, self.quantisers.get(role))

    @functools.cached_property
    def _spread(self) -> Mapping[str, torch.device]:
        """The devices of the components that the key `devices` has to place, by role."""
        if not self.config.devices:
            return {}
        return devices.spread(self.config, {role: self.weights(role) or 0 for role in placement.ORDER})

    def load(self, *roles: str, offloaded: bool = False) -> Parts:
        """Load the named components; schedule and sampler are always among the parts.

        It also sets the number of torch's CPU threads, where the configuration does.

        Args:
            roles: Those of "encoder", "codec" and "denoiser" that are needed.
            offloaded: Leave the weights on the CPU; `qframe.compose.placement.place` decides what moves when.
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
        settings, device = getattr(self.config, role), self.device(role)
        return load_component(
            self.classes[role],
            self.models[role],
            settings.options,
            self.quantisers.get(role),
            device=placement.CPU if offloaded else device,
            dtype=devices.dtype_on(self.config, role, device),
            role=role,
            name=settings.use,
        )
