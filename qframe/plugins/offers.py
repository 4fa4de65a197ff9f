"""What a plugin offers, under the plugin's name: its classes are imported here, and checked when they are."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import attrs

from qframe.errors import ConfigError, PluginError, QframeError
from qframe.plugins.hookspecs import Component, Family

D = TypeVar("D", Component, Family)


class UnknownNameError(ConfigError):
    """A name that no plugin offers.

    Attributes:
        known: The names that could be given in its place, sorted.
    """

    def __init__(self, message: str, hint: str, known: tuple[str, ...]) -> None:
        super().__init__(message, hint)
        self.known = known


def reason(error: BaseException) -> str:
    """The class and the message of an error in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def resolve(target: str, plugin: str | None = None) -> Any:
    """Import the object that "module:Name" names.

    Raises:
        PluginError: It cannot be imported; the message names the target and, if it is given, the plugin.
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
        """Import the object that a "module:Name" field of the declaration names; None where the field is None."""
        target = getattr(self.declared, field)
        return None if target is None else resolve(target, self.plugin)

    def implementation(self, interface: type, field: str = "target") -> Any:
        """Import the class that a field of the declaration names, and check that it implements the interface.

        Raises:
            PluginError: It cannot be imported, is no subclass of the interface, or lacks methods of it.
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
        """Import the attrs class of the settings that a field of the declaration names; None where it names none.

        Raises:
            PluginError: It cannot be imported, or is not an attrs class.
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
    """Everything that the registry knows about a chosen family, looked up once.

    Attributes:
        family: The family.
        recipe: The family that declares the recipe: the chosen one itself, or the one whose recipe it takes.
        transforms: The transforms around the recipe, the first one first.
        models: The models that ship with plugins, by name.
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
        """Import the settings classes of the recipe, under ("recipe",), and of each component; None: it has none."""
        own = {("recipe",): self.recipe.settings("settings")}
        return own | {key: offer.settings() for key, offer in self.components.items()}

    def component(self, *key: str) -> Offer[Component]:
        """The component that a key of the configuration names. ConfigError if no plugin offers it."""
        if key in self.unknown:
            raise self.unknown[key]
        return self.components[key]
