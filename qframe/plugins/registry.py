"""The registry: the components and families that the installed plugins offer, and the plugins that failed to load.

Three failures that pluggy hides are reported here with the name of the plugin: a second distribution with the same
entry-point name (pluggy skips it silently), a plugin that cannot be imported (pluggy stops without naming it), and a
hook whose name is misspelt (pluggy ignores it). Imports no torch.

Environment variables:
    QFRAME_DISABLE_PLUGINS=a,b    does not load the plugins a and b
    QFRAME_TRACE_PLUGINS=1        writes to stderr how each plugin loads, and every call of an observing hook
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, TypeVar

import pluggy

from qframe.errors import ConfigError, PluginError, did_you_mean
from qframe.plugins import hookspecs
from qframe.plugins.discovery import (
    DISABLE,
    Candidate,
    check_hooks,
    disabled_plugins,
    import_plugin,
    installed_plugins,
)
from qframe.plugins.hookspecs import PROJECT, Component, Family
from qframe.plugins.offers import HERE, Broken, ChosenFamily, Offer, Plugin, UnknownNameError, reason

log = logging.getLogger(__name__)

TRACE = "QFRAME_TRACE_PLUGINS"

# The commands of `qframe.cli`. A plugin that offers a command of one of these names is reported as broken.
CORE_COMMANDS = frozenset({"compose", "config", "plugins", "sample", "train"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
"""What a component or a family may be called, so that the name can be typed in a command and shown in a terminal."""

_SLOW_SECONDS = 1.0
"""A plugin whose import takes longer than this delays every command, and is named."""

_Declared = TypeVar("_Declared", Component, Family)
_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


class Registry:
    """The components and families that plugins offer, looked up by kind and name, and the observers of training runs.

    Attributes:
        disabled: The names of the plugins that are not loaded although they may be installed.
    """

    def __init__(self, candidates: Iterable[Candidate] = (), *, disabled: Iterable[str] = ()) -> None:
        """Load every candidate whose name is not among `disabled`. A plugin that fails is listed in `broken`."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get(TRACE, "0") not in ("", "0"):
            self._manager.trace.root.setwriter(sys.stderr.write)
            self._manager.enable_tracing()
        self._broken: list[Broken] = []
        self._failed: set[str] = set()  # observers that failed in the present run
        self._plugins: dict[str, Plugin] = {}
        self._components: dict[tuple[str, str], Offer[Component]] = {}
        self._families: dict[str, Offer[Family]] = {}
        candidates = list(candidates)
        self.disabled = tuple(sorted(set(disabled)))
        for name in self.disabled:
            if name not in (names := {candidate.name for candidate in candidates}):
                self._fail(name, "not installed", f"named in {DISABLE}, but unknown{did_you_mean(name, names)}")
        for candidate in candidates:
            if candidate.name not in self.disabled:
                self._add(candidate)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins that were loaded, in order. A plugin of which only some declarations failed is among them."""
        return tuple(self._plugins.values())

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Every failure that occurred while plugins were loaded, in order."""
        return tuple(self._broken)

    @property
    def hook(self) -> Any:
        """Pluggy's hook callers: `hook.qframe_step_end(run=..., step=..., metrics=...)` calls every observer of it."""
        return self._manager.hook

    def tell(self, event: str, **values: Any) -> None:
        """Call every observer of a hook with the values of an event in a training run.

        An observer that raises an error does not end the run: a warning in the log names the observer (only its first
        error in each run), and the other observers are called.

        Args:
            event: The name of the hook, such as "qframe_step_end".
            values: The arguments of the hook.
        """
        if event == "qframe_run_start":
            self._failed.clear()
        implementations = getattr(self._manager.hook, event).get_hookimpls()
        for implementation in reversed(implementations):
            others = [other.plugin for other in implementations if other is not implementation]
            try:
                self._manager.subset_hook_caller(event, others)(**values)
            # The observer is code of a plugin, and the run that it would end may have taken days.
            except Exception as error:  # noqa: BLE001
                name = implementation.plugin_name
                if name not in self._failed:
                    self._failed.add(name)
                    log.warning("%s failed at %s and is passed over: %s", name, event, reason(error))

    @contextmanager
    def observing(self, observers: Mapping[str, object]) -> Iterator[None]:
        """Return a context in which these loggers observe runs, in addition to the plugins.

        Args:
            observers: The loggers, by their registered name.

        Raises:
            PluginError: A logger has no hook, or a hook of it is misspelt.
        """
        for observer in observers.values():
            check_hooks(observer)
        names = {f"logger {name}": observer for name, observer in observers.items()}
        for name, observer in names.items():
            self._manager.register(observer, name)
        try:
            yield
        finally:
            for name in names:
                self._manager.unregister(name=name)

    def components(self, kind: str | None = None) -> tuple[Component, ...]:
        """Return the components of one kind, or of all kinds if `kind` is None, sorted by kind and name."""
        found = sorted(self._components.items())
        return tuple(offer.declared for (own, _), offer in found if kind is None or own == kind)

    def families(self) -> tuple[Family, ...]:
        """Return all families, sorted by name."""
        return tuple(offer.declared for _, offer in sorted(self._families.items()))

    def component(self, kind: str, name: str) -> Component:
        """Return the component of a kind and name.

        Raises:
            ConfigError: No plugin offers it; the message names the most similar names, and lists all.
        """
        return self.offer(kind, name).declared

    def family(self, name: str) -> Family:
        """Return the family of a name.

        Raises:
            ConfigError: No plugin offers it; the message names the most similar names, and lists all.
        """
        return self._known("family", name, self._families).declared

    def offer(self, kind: str, name: str) -> Offer[Component]:
        """Return the component of a kind and name, together with the name of its plugin.

        Raises:
            ConfigError: No plugin offers it; the message names the most similar names, and lists all.
        """
        return self._known(kind, name, self._of_kind(kind))

    def choose(self, family: str, components: Mapping[tuple[str, ...], tuple[str, str]] | None = None) -> ChosenFamily:
        """Look up a family together with the components that a configuration names.

        Args:
            family: The name of the family.
            components: Kind and name of each component, by the path of the configuration key that names it.

        Raises:
            ConfigError: There is no such family, or it names a transform that does not exist. A component that no
                plugin offers raises no error here; it is listed in `ChosenFamily.unknown`.
            PluginError: The family takes the recipe of a family that does not exist or has no recipe of its own.
        """
        chosen = self._known("family", family, self._families)
        found: dict[tuple[str, ...], Offer[Component]] = {}
        unknown: dict[tuple[str, ...], UnknownNameError] = {}
        for key, (kind, name) in (components or {}).items():
            try:
                found[key] = self.offer(kind, name)
            except UnknownNameError as error:
                unknown[key] = error
        return ChosenFamily(
            family=chosen.declared,
            recipe=self._recipe_of(chosen),
            transforms=tuple(self.offer("transform", name) for name in chosen.declared.transforms),
            models=self._of_kind("model"),
            components=found,
            unknown=unknown,
        )

    def register(self, declared: Component | Family) -> None:
        """Offer a component or a family in this process, in the place of one that was registered in this way before.

        Raises:
            ConfigError: It is no declaration, its name is no name, or an installed plugin offers this name.
        """
        if not isinstance(declared, Component | Family):
            raise ConfigError(
                f"register takes a Component or a Family, got a {type(declared).__name__}",
                'For example qframe.register(qframe.Component("sampler", "mine", MySampler)).',
            )
        component = isinstance(declared, Component)
        own: dict[Any, Offer[Any]] = self._components if component else self._families
        key = (declared.kind, declared.name) if isinstance(declared, Component) else declared.name
        if not isinstance(declared.name, str) or not _NAME.fullmatch(declared.name):
            raise ConfigError(
                f"{declared.name!r} is no name", "Letters, digits and '-', '_', '.', '+' after the first."
            )
        if key in own and own[key].plugin != HERE:
            raise ConfigError(f"plugin {own[key].plugin!r} offers {declared.name!r} already", "Take another name.")
        own[key] = Offer(declared, HERE)

    def sources_by_suffix(self) -> dict[str, str]:
        """Return the name of the data source for each file suffix, in lower case.

        If several sources declare a suffix, the source of the plugin that was loaded first is returned.
        """
        found: dict[str, str] = {}
        for offer in self._components.values():
            for suffix in offer.declared.suffixes:
                found.setdefault(suffix.lower(), offer.declared.name)
        return found

    def source_for(self, path: str) -> str:
        """Return the name of the data source that declares the suffix of a path; "folder" if none declares it."""
        return self.sources_by_suffix().get(PurePath(path).suffix.lower(), "folder")

    def plugin_of(self, declared: Component | Family) -> str:
        """Return the name of the plugin that declares a component or a family."""
        return self._offer_of(declared).plugin

    def resolve(self, declared: Component | Family, field: str = "target") -> Any:
        """Import the object that a field of a declaration names as "module:Name"; None if the field is None."""
        return self._offer_of(declared).resolve(field)

    def _offer_of(self, declared: Component | Family) -> Offer[Component] | Offer[Family]:
        if isinstance(declared, Component):
            return self._components[declared.kind, declared.name]
        return self._families[declared.name]

    def _of_kind(self, kind: str) -> dict[str, Offer[Component]]:
        return {name: offer for (own, name), offer in sorted(self._components.items()) if own == kind}

    def _recipe_of(self, chosen: Offer[Family]) -> Offer[Family]:
        """The family that declares the recipe: the chosen one, or the one that it names."""
        name = chosen.declared.recipe
        if ":" in name:
            return chosen
        owner = self._families.get(name)
        if owner is None or ":" not in owner.declared.recipe:
            raise PluginError(
                f"plugin {chosen.plugin!r}: family {chosen.declared.name!r} takes the recipe of family "
                f"{name!r}, which {'does not exist' if owner is None else 'has none of its own'}",
                "Install or enable the plugin of that family.",
            )
        return owner

    def _known(self, kind: str, name: str, known: Mapping[str, _Item]) -> _Item:
        if name in known:
            return known[name]
        names = tuple(sorted(known))
        missing = "".join(f"\nNot loaded: {problem}" for problem in self._broken)
        hint = f"Known: {', '.join(names) or 'none'}.{missing}"
        raise UnknownNameError(f"no {kind} {name!r}{did_you_mean(name, known)}", hint, names)

    def _fail(self, plugin: str, distribution: str, why: str) -> None:
        self._manager.trace(f"{plugin}: {why}")
        self._broken.append(Broken(plugin, distribution, why))

    def _add(self, candidate: Candidate) -> None:
        first = self._plugins.get(candidate.name)
        if first is not None:
            self._fail(
                candidate.name,
                candidate.distribution,
                f"another distribution, {first.distribution}, has a plugin of the same name ({first.target}), which is "
                f"used; this one ({candidate.target}) is not. One of the two must be uninstalled or renamed",
            )
            return
        started = time.perf_counter()
        try:
            loaded = import_plugin(candidate)
            check_hooks(loaded)
            self._manager.register(loaded, candidate.name)
            components = self._collect(candidate.name, "qframe_components", Component)
            families = self._collect(candidate.name, "qframe_families", Family)
        # A plugin may fail in any way while it is imported; what failed is recorded under its name.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            if self._manager.has_plugin(candidate.name):
                self._manager.unregister(name=candidate.name)
            why = str(error) if isinstance(error, PluginError) else reason(error)
            self._fail(candidate.name, candidate.distribution, why)
            return
        milliseconds = (time.perf_counter() - started) * 1000
        if milliseconds > _SLOW_SECONDS * 1000 and not candidate.bundled:
            log.warning(
                "plugin %r (%s) took %.1f s to import, which delays every command; %s=%s leaves it out",
                candidate.name,
                candidate.distribution,
                milliseconds / 1000,
                DISABLE,
                candidate.name,
            )
        self._manager.trace(
            f"{candidate.name}: loaded in {milliseconds:.1f} ms, {len(components)} components, {len(families)} families"
        )
        for component in components:
            if component.kind == "command" and component.name in CORE_COMMANDS:
                self._fail(
                    candidate.name,
                    candidate.distribution,
                    f"offers command {component.name!r}, which qframe itself has; the one of qframe is used. "
                    "The plugin's author must rename it",
                )
                continue
            self._offer(self._components, (component.kind, component.name), component, candidate)
        for family in families:
            self._offer(self._families, family.name, family, candidate)
        self._plugins[candidate.name] = Plugin(
            candidate.name, candidate.distribution, candidate.target, tuple(components), tuple(families)
        )

    def _collect(self, plugin: str, hook: str, expected: type[_Declared]) -> list[_Declared]:
        found: list[_Declared] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin_name != plugin:
                continue
            result = implementation.function()
            if not isinstance(result, Sequence) or isinstance(result, str):
                raise PluginError(f"{hook} returned {_kind_of(result)}, expected a list of {expected.__name__}")
            for position, item in enumerate(result):
                if not isinstance(item, expected):
                    raise PluginError(
                        f"{hook} returned {_kind_of(item)} at position {position}, expected {expected.__name__}"
                    )
                if not isinstance(item.name, str) or not _NAME.fullmatch(item.name):
                    raise PluginError(
                        f"{hook} offers {item.name!r} at position {position}, which is no name: letters, digits and "
                        "'-', '_', '.', '+' after the first"
                    )
                found.append(item)
        return found

    def _offer(self, table: dict[_Key, Offer[_Declared]], key: _Key, declared: _Declared, candidate: Candidate) -> None:
        if key in table:
            first = table[key].plugin
            what = (
                f"{declared.kind} {declared.name!r}" if isinstance(declared, Component) else f"family {declared.name!r}"
            )
            self._fail(
                candidate.name,
                candidate.distribution,
                f"offers {what}, which plugin {first!r} offers too; the one of {first!r} is used. "
                f"{DISABLE}={first} would leave that plugin out",
            )
            return
        table[key] = Offer(declared, candidate.name)


def _kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


@functools.cache
def load_registry() -> Registry:
    """Return the registry of the installed plugins. It is made on the first call in this process, and kept."""
    return Registry(installed_plugins(), disabled=disabled_plugins())
