"""Finds the plugins, takes what they declare, and says which of them are broken and why. Imports no torch.

A plugin is an entry point in the group "qframe" whose module has the hooks of `qframe.plugins.hookspecs`. pluggy leaves
three gaps that are closed here: a second distribution with the same entry-point name is skipped in silence, one
failing import stops discovery and names no plugin, and a misspelt hook is ignored.

    QFRAME_DISABLE_PLUGINS=a,b    leaves these plugins out
    QFRAME_TRACE_PLUGINS=1        writes how each plugin loads, and every event that is relayed, to stderr
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, TypeVar

import attrs
import pluggy

from qframe.errors import ConfigError, PluginError, QframeError
from qframe.plugins import hookspecs
from qframe.plugins.hookspecs import PROJECT, Component, Family

log = logging.getLogger(__name__)

GROUP = "qframe"
DISABLE = "QFRAME_DISABLE_PLUGINS"
TRACE = "QFRAME_TRACE_PLUGINS"

# The commands of `qframe.cli`. A plugin that offers a command of one of these names is reported as broken.
CORE_COMMANDS = frozenset({"cache", "compose", "config", "lora", "plugins", "sample", "train"})

_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("qframe_"))
_Declared = TypeVar("_Declared", Component, Family)
_Item = TypeVar("_Item")


@attrs.frozen(eq=False)
class Candidate:
    """A plugin before it is loaded: its name, where it comes from, and how to get its object.

    distribution: "name version" of the package that brings it.
    """

    name: str
    distribution: str
    target: str
    load: Callable[[], object]


@attrs.frozen
class Plugin:
    """A plugin that works: its name, where it comes from, and what it declares."""

    name: str
    distribution: str
    target: str
    components: tuple[Component, ...] = ()
    families: tuple[Family, ...] = ()


@attrs.frozen
class Broken:
    """What a plugin failed at. Whatever else it declares, and every other plugin, goes on working."""

    plugin: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} ({self.distribution}): {self.reason}"


def nearest(name: str, known: Iterable[str], count: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """The names in `known` that `name` may have been meant to be, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that has just named `name`; nothing where no known name is near."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def resolve(target: str, plugin: str | None = None) -> Any:
    """The object that "module:Name" names, imported now. PluginError names the plugin and the target."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (QframeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        owner = "" if plugin is None else f"plugin {plugin!r}: "
        raise PluginError(
            f"{owner}{target} cannot be used ({_say(error)})",
            "Reinstall or update the plugin, or report this to its author.",
        ) from error


class Registry:
    """Everything the plugins offer.

    plugins: those that work, in the order they were loaded. broken: what failed, by plugin and reason.
    hook: pluggy's relay; `hook.qframe_step_end(run=..., step=..., metrics=...)` calls every observer.
    """

    def __init__(self, candidates: Iterable[Candidate] = (), *, disabled: Iterable[str] = ()) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get(TRACE, "0") not in ("", "0"):
            self._manager.trace.root.setwriter(sys.stderr.write)
            self._manager.enable_tracing()
        self._broken: list[Broken] = []
        self._failed: set[str] = set()
        self._plugins: dict[str, Plugin] = {}
        self._components: dict[tuple[str, str], tuple[Component, str]] = {}
        self._families: dict[str, tuple[Family, str]] = {}
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
        return tuple(self._plugins.values())

    @property
    def broken(self) -> tuple[Broken, ...]:
        return tuple(self._broken)

    @property
    def hook(self) -> Any:
        return self._manager.hook

    def tell(self, event: str, **values: Any) -> None:
        """Call every observer of a hook. One that fails is named in the log, once until the next run starts.

        An observer never ends a run: the others are called, and whoever tells goes on.
        """
        if event == "qframe_run_start":
            self._failed.clear()
        implementations = getattr(self._manager.hook, event).get_hookimpls()
        for implementation in reversed(implementations):
            others = [other.plugin for other in implementations if other is not implementation]
            try:
                self._manager.subset_hook_caller(event, others)(**values)
            # Somebody else's code again, in the middle of a run that may have taken days.
            except Exception as error:  # noqa: BLE001
                name = implementation.plugin_name
                if name not in self._failed:
                    self._failed.add(name)
                    log.warning("%s failed at %s and is passed over: %s", name, event, _say(error))

    @contextmanager
    def observing(self, observers: Mapping[str, object]) -> Iterator[None]:
        """Inside, these loggers, by name, observe too. PluginError for one whose hooks are none."""
        for observer in observers.values():
            _check_hooks(observer)
        names = {f"logger {name}": observer for name, observer in observers.items()}
        for name, observer in names.items():
            self._manager.register(observer, name)
        try:
            yield
        finally:
            for name in names:
                self._manager.unregister(name=name)

    def components(self, kind: str | None = None) -> tuple[Component, ...]:
        """The components of one kind, or all, by kind and name."""
        return tuple(
            component for (k, _), (component, _) in sorted(self._components.items()) if kind is None or k == kind
        )

    def families(self) -> tuple[Family, ...]:
        """All families, by name."""
        return tuple(family for _, (family, _) in sorted(self._families.items()))

    def component(self, kind: str, name: str) -> Component:
        """The component of this kind and name. ConfigError with the nearest names and the list."""
        known = {n: found for (k, n), found in self._components.items() if k == kind}
        return self._known(kind, name, known)[0]

    def family(self, name: str) -> Family:
        """The family of this name. ConfigError with the nearest names and the list."""
        return self._known("family", name, self._families)[0]

    def recipe_family(self, family: Family) -> Family:
        """The family that declares the recipe of `family`: itself, or the one that it names. PluginError if neither."""
        if ":" in family.recipe:
            return family
        owner, _ = self._families.get(family.recipe, (None, ""))
        if owner is None or ":" not in owner.recipe:
            raise PluginError(
                f"plugin {self.plugin_of(family)!r}: family {family.name!r} takes the recipe of family "
                f"{family.recipe!r}, which {'does not exist' if owner is None else 'has none of its own'}",
                "Install or enable the plugin of that family.",
            )
        return owner

    def sources_by_suffix(self) -> dict[str, str]:
        """The name of the data source that reads each suffix. The plugin that was loaded first wins."""
        found: dict[str, str] = {}
        for component, _ in self._components.values():
            for suffix in component.suffixes:
                found.setdefault(suffix.lower(), component.name)
        return found

    def source_for(self, path: str) -> str:
        """The name of the data source that reads this path: the one that declares its suffix, else "folder"."""
        return self.sources_by_suffix().get(PurePath(path).suffix.lower(), "folder")

    def plugin_of(self, declared: Component | Family) -> str:
        """The name of the plugin that declared it."""
        if isinstance(declared, Component):
            return self._components[declared.kind, declared.name][1]
        return self._families[declared.name][1]

    def resolve(self, declared: Component | Family, field: str = "target") -> Any:
        """The object that a "module:Name" field of a declaration names; None where the field is None."""
        target = getattr(declared, field)
        return None if target is None else resolve(target, self.plugin_of(declared))

    def _known(self, kind: str, name: str, known: Mapping[str, _Item]) -> _Item:
        if name in known:
            return known[name]
        names = ", ".join(sorted(known)) or "none"
        missing = "".join(f"\nNot loaded: {problem}" for problem in self._broken)
        raise ConfigError(f"no {kind} {name!r}{did_you_mean(name, known)}", f"Known: {names}.{missing}")

    def _fail(self, plugin: str, distribution: str, reason: str) -> None:
        self._manager.trace(f"{plugin}: {reason}")
        self._broken.append(Broken(plugin, distribution, reason))

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
            loaded = candidate.load()
            _check_hooks(loaded)
            self._manager.register(loaded, candidate.name)
            components = self._collect(candidate.name, "qframe_components", Component)
            families = self._collect(candidate.name, "qframe_families", Family)
        # The one place where anything may go wrong, on behalf of people who are not here: recorded by name.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            if self._manager.has_plugin(candidate.name):
                self._manager.unregister(name=candidate.name)
            reason = str(error) if isinstance(error, PluginError) else _say(error)
            self._fail(candidate.name, candidate.distribution, reason)
            return
        milliseconds = (time.perf_counter() - started) * 1000
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
                found.append(item)
        return found

    def _offer(
        self, table: dict[_Item, tuple[_Declared, str]], key: _Item, declared: _Declared, candidate: Candidate
    ) -> None:
        if key in table:
            what = (
                f"{declared.kind} {declared.name!r}" if isinstance(declared, Component) else f"family {declared.name!r}"
            )
            self._fail(
                candidate.name,
                candidate.distribution,
                f"offers {what}, which plugin {table[key][1]!r} offers too; the one of {table[key][1]!r} is used. "
                f"{DISABLE}={table[key][1]} would leave that plugin out",
            )
            return
        table[key] = (declared, candidate.name)


def _kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _check_hooks(plugin: object) -> None:
    """PluginError if a hook is misspelt or lacks @hookimpl, or if there is none."""
    found = 0
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        marked = getattr(function, f"{PROJECT}_impl", None)
        if not isinstance(marked, dict):
            if inspect.isfunction(function) and name.startswith("qframe_") and nearest(name, _HOOKS):
                raise PluginError(f"{name} lacks @hookimpl, so it would never be called")
            continue
        hook = marked.get("specname") or name
        if hook not in _HOOKS:
            raise PluginError(f"there is no hook {hook!r}{did_you_mean(hook, _HOOKS)} (hooks: {', '.join(_HOOKS)})")
        found += 1
    if not found:
        raise PluginError(f"has none of the hooks {', '.join(_HOOKS)}")


def _installed() -> Iterator[Candidate]:
    entry_points = list(importlib.metadata.entry_points(group=GROUP))

    def order(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
        # qframe's own first, so that no other distribution can take one of their names.
        distribution = entry_point.dist.name if entry_point.dist else ""
        return distribution != PROJECT, distribution, entry_point.name

    for entry_point in sorted(entry_points, key=order):
        distribution = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "unknown"
        yield Candidate(entry_point.name, distribution, entry_point.value, entry_point.load)


@functools.cache
def load_registry() -> Registry:
    """The registry of the plugins installed here, made once per process."""
    disabled = (name.strip() for name in os.environ.get(DISABLE, "").split(","))
    return Registry(_installed(), disabled=[name for name in disabled if name])
