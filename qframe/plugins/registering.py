"""Implements `qframe.register`, which offers a component of a program or a notebook by its name. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, Family
from qframe.plugins.registry import load_registry


def register(declared: Component | Family) -> None:
    """Offer a component or a family of this process to configurations by its name, as if a plugin offered it.

        class Mine(qframe.interfaces.Sampler): ...
        qframe.register(qframe.Component("sampler", "mine", Mine))
        pipe = qframe.load("qwen-image", components={"sampler": "mine"})

    It is forgotten when the process ends; a run that names it continues only where it was registered again. Registering
    a name again replaces the former declaration, so that a cell of a notebook can be run twice.

    Args:
        declared: The declaration. The target and the options of a component may be the classes themselves.

    Raises:
        ConfigError: It is no declaration, its name is no name, or an installed plugin offers this name.
    """
    load_registry().register(declared)
