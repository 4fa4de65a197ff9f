"""Finds the plugins that are installed, without loading them. Imports no torch.

A plugin is an entry point in the group "qframe" whose module has the hooks of `qframe.plugins.hookspecs`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import attrs

from qframe.errors import PluginError, did_you_mean, nearest
from qframe.plugins import hookspecs
from qframe.plugins.distribution import DISTRIBUTION
from qframe.plugins.hookspecs import PROJECT

GROUP = "qframe"
DISABLE = "QFRAME_DISABLE_PLUGINS"

_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("qframe_"))


@attrs.frozen(eq=False)
class Candidate:
    """A plugin that is installed and not loaded yet.

    Attributes:
        name: The name of the plugin, which is the name of its entry point.
        distribution: Name and version of the installed package that has the entry point, as "name version".
        target: The module that the entry point names.
        load: Imports this module and returns it.
        bundled: Whether the plugin is one of qframe's own.
    """

    name: str
    distribution: str
    target: str
    load: Callable[[], object]
    bundled: bool = False


def installed_plugins() -> Iterator[Candidate]:
    """Yield the installed plugins: first those of qframe itself, so that no other package can take their names."""

    def order(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
        distribution = entry_point.dist.name if entry_point.dist else ""
        return distribution != DISTRIBUTION, distribution, entry_point.name

    for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=order):
        distribution = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "unknown"
        bundled = entry_point.dist is not None and entry_point.dist.name == DISTRIBUTION
        yield Candidate(entry_point.name, distribution, entry_point.value, entry_point.load, bundled)


def import_plugin(candidate: Candidate) -> object:
    """Import the module of a plugin, and return it.

    Raises:
        PluginError: The module raised KeyboardInterrupt although nobody pressed Ctrl-C. Other errors of the module
            pass unchanged.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    own = own and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as under nohup: no signal was meant for this process
    if own:
        signal.signal(signal.SIGINT, note)
    try:
        return candidate.load()
    except KeyboardInterrupt as error:
        if pressed or not (own or deaf):
            raise
        raise PluginError("raised KeyboardInterrupt while it was imported") from error
    finally:
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def disabled_plugins() -> list[str]:
    """Return the names of the plugins that the environment variable QFRAME_DISABLE_PLUGINS says not to load."""
    return [name for part in os.environ.get(DISABLE, "").split(",") if (name := part.strip())]


def check_hooks(plugin: object) -> None:
    """Check that the hooks of a plugin have known names, because pluggy silently ignores a misspelt one.

    Args:
        plugin: The module of a plugin, or a logger.

    Raises:
        PluginError: A hook is misspelt or lacks @hookimpl, or the plugin has no hook at all.
    """
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
