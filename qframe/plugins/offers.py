"""Declarations of components and families together with their plugin's name; imports and checks their classes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import attrs

from qframe.errors import ConfigError, PluginError, QframeError
from qframe.plugins.hookspecs import Component, Family

D = TypeVar("D", Component, Family)

HERE = "registered here"
"""The plugin of what `qframe.register` was given."""


@attrs.frozen
class Plugin:
    """A plugin that was loaded, with what it declares.

    Attributes:
        name: The name of the plugin, which is the name of its entry point.
        distribution: Name and version of the installed package that has the entry point, as "name version".
        target: The module that the entry point names.
        components: The components that it declares.
        families: The families that it declares.
    """

    name: str
    distribution: str
    target: str
    components: tuple[Component, ...] = ()
    families: tuple[Family, ...] = ()


@attrs.frozen
class Broken:
    """A failure of one plugin, or of one declaration of it. All other plugins and declarations can be used.

    Attributes:
        plugin: The name of the plugin.
        distribution: Name and version of the installed package that has the plugin, as "name version".
        reason: What failed.
    """

    plugin: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} ({self.distribution}): {self.reason}"


class UnknownNameError(ConfigError):
    """The error of a name of a component or family that no plugin offers.

    Attributes:
        known: The names of this kind that plugins offer, sorted.
    """

    def __init__(self, message: str, hint: str, known: tuple[str, ...]) -> None:
        super().__init__(message, hint)
        self.known = known


def reason(error: BaseException) -> str:
    """Return the class and the message of an error as "Class: message"."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def resolve(target: str, plugin: str | None = None) -> Any:
    """Import the object that a string "module:Name" names.

    Args:
        target: The string.
        plugin: The name of the plugin that the object belongs to, for the error.

    Raises:
        PluginError: The object cannot be imported.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (QframeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        owner = "" if plugin is None else f"plugin {plugin!r}: "
        raise PluginError(
            f"{owner}{target} cannot be used ({reason(error)})",
            "Reinstall or update the plugin, or report this to its author.",
        ) from error


@attrs.frozen(eq=False)
class Offer(Generic[D]):
    """A component or a family, and the plugin that declares it.

    Attributes:
        declared: The declaration, as the plugin made it.
        plugin: The name of the plugin.
    """

    declared: D
    plugin: str

    def resolve(self, field: str = "target") -> Any:
        """Import the object that a field of the declaration names as "module:Name"; None if the field is None.

        A class that stands in the declaration itself is returned as it is.
        """
        target = getattr(self.declared, field)
        return resolve(target, self.plugin) if isinstance(target, str) else target

    def implementation(self, interface: type, field: str = "target") -> Any:
        """Import the class that a field of the declaration names, and check that it implements an interface.

        Args:
            interface: The class that it must be a subclass of.
            field: The name of the field.

        Raises:
            PluginError: The class cannot be imported, is no subclass of the interface, or lacks an abstract method.
        """
        found, target = self.resolve(field), getattr(self.declared, field)
        if not (isinstance(found, type) and issubclass(found, interface)):
            public = ".".join(interface.__module__.split(".")[:2])  # the room that the interface is imported from
            raise PluginError(f"plugin {self.plugin!r}: {target} is no subclass of {public}.{interface.__name__}")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise PluginError(f"plugin {self.plugin!r}: {target} lacks methods of {interface.__name__}: {missing}")
        return found

    def settings(self, field: str = "options") -> type | None:
        """Import the attrs class of settings that a field of the declaration names; return None if the field is None.

        Raises:
            PluginError: The class cannot be imported, or is not an attrs class.
        """
        found = self.resolve(field)
        if found is not None and not (isinstance(found, type) and attrs.has(found)):
            raise PluginError(
                f"plugin {self.plugin!r}: {getattr(self.declared, field)} is not an attrs class",
                "The settings of a component or recipe are an attrs class.",
            )
        return found


@attrs.frozen(eq=False, kw_only=True)
class ChosenFamily:
    """A family that a configuration chooses, and the components that belong to it, as the registry holds them.

    Attributes:
        family: The family.
        recipe: The family that declares the recipe: the chosen family itself, or another one whose recipe it takes.
        transforms: The transforms that are put around the recipe, the innermost first.
        models: All models that ship with plugins, by name.
        components: The components that the configuration names, by the path of the key that names each, such as
            ("denoiser", "use").
        unknown: For each key that names a component which no plugin offers, the error that says so.
    """

    family: Family
    recipe: Offer[Family]
    transforms: tuple[Offer[Component], ...]
    models: Mapping[str, Offer[Component]]
    components: Mapping[tuple[str, ...], Offer[Component]]
    unknown: Mapping[tuple[str, ...], UnknownNameError]

    def settings(self) -> dict[tuple[str, ...], type | None]:
        """Import the settings classes of the recipe and of each component.

        Returns:
            The class for the recipe under the key ("recipe",), and for each component under the path of the key that
            names the component. A component or recipe that takes no settings has None.
        """
        own = {("recipe",): self.recipe.settings("settings")}
        return own | {key: offer.settings() for key, offer in self.components.items()}

    def component(self, *key: str) -> Offer[Component]:
        """Return the component that a key of the configuration names, for example `component("denoiser", "use")`.

        Raises:
            ConfigError: No plugin offers this component.
        """
        if key in self.unknown:
            raise self.unknown[key]
        return self.components[key]
