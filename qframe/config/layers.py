"""Merges the layers of a configuration into nested tables, in which each value carries the name of its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

import attrs

from qframe.config.schema import ROLES
from qframe.errors import ConfigError
from qframe.plugins.hookspecs import Component, Family
from qframe.plugins.offers import ChosenFamily, Offer
from qframe.plugins.registry import Registry

DEEPEST = 32

Key = tuple[str, ...]
"""The path of a key in nested tables, for example ("train", "max_steps")."""


@attrs.frozen(eq=False)
class Leaf:
    """A value in the merged tables, and where it comes from.

    Attributes:
        value: The value, as TOML or Python gives it.
        source: Where the value comes from, as messages and `qframe config show` name it, such as "--set".
    """

    value: Any
    source: str


Tree = dict[str, Union["Tree", Leaf]]


def put(tree: Tree, value: Mapping[str, Any], source: Callable[[Key], str], at: Key = ()) -> None:
    """Merge nested tables into a tree: tables are merged with each other, any other value replaces what was there.

    Args:
        tree: The tree, which is changed.
        value: The tables; a value of None counts as not given.
        source: Called with the path of a key; returns the name of the source of its value. A value that is a `Leaf`
            keeps its own source.
        at: The path that `tree` has in the whole configuration.

    Raises:
        ConfigError: The tables are nested too deeply.
    """
    if len(at) > DEEPEST:
        raise ConfigError(f"{'.'.join(at[:3])}...: tables nested more than {DEEPEST} deep")
    for name, item in value.items():
        key = (*at, str(name))
        if isinstance(item, Mapping):
            inner = tree.get(key[-1])
            if not isinstance(inner, dict):
                inner = tree[key[-1]] = {}
            put(inner, item, source, key)
        elif isinstance(item, Leaf):
            tree[key[-1]] = item
        elif item is not None:
            tree[key[-1]] = Leaf(item, source(key))


def own_source(key: Key) -> str:
    """Serve as the `source` of `put` when a tree is merged, whose leaves have sources; `put` then never calls it."""
    raise AssertionError(f"{key} has no source")


def plain_tables(tree: Tree) -> dict[str, Any]:
    """Return the tree as nested tables of plain values, without their sources."""
    return {name: plain_tables(node) if isinstance(node, dict) else node.value for name, node in tree.items()}


def value_at(tree: Tree, *key: str) -> Any:
    """Return the value at the path `key`; None if there is no value, or a table."""
    node: Tree | Leaf | None = tree
    for name in key:
        node = node.get(name) if isinstance(node, dict) else None
    return node.value if isinstance(node, Leaf) else None


def leaves(node: Tree | Leaf, key: Key) -> Iterator[tuple[Key, Leaf]]:
    """Yield every leaf of a tree with its path.

    Args:
        node: The tree, or a single leaf.
        key: The path of `node` itself, with which the yielded paths begin.
    """
    if isinstance(node, Leaf):
        yield key, node
    else:
        for name, inner in node.items():
            yield from leaves(inner, (*key, name))


def source_at(tree: Tree, key: Key) -> str:
    """Return the source of the value at the path `key`; for a table, the source of its first value.

    Returns "default" if the tree has no value there.
    """
    node: Tree | Leaf = tree
    for name in key:
        if isinstance(node, Leaf):
            break
        if name not in node:
            return "default"
        node = node[name]
    return next((leaf.source for _, leaf in leaves(node, ())), "default")


def choose_family(user: Tree, registry: Registry) -> ChosenFamily:
    """Look up the family that the user names.

    Args:
        user: What the user gives.
        registry: The plugins to choose from.

    Raises:
        ConfigError: The user names no family, or one that no plugin offers.
    """
    name = value_at(user, "family")
    if isinstance(name, str):
        return registry.choose(name)
    known = ", ".join(family.name for family in registry.families()) or "none"
    if "family" in user:
        raise ConfigError("family: expected a string", f"Known families: {known}.")
    raise ConfigError("no family is chosen", f'Give --family NAME, or family = "NAME" in the file. Known: {known}.')


def family_layer(family: Family) -> Tree:
    """Return the layer of a family: the components that the family chooses, and its defaults."""
    tree: Tree = {}
    defaults: dict[str, Any] = {role: {"use": getattr(family, role)} for role in ROLES}
    defaults |= {"model": family.model, "data": {"use": family.data}}
    for layer in (defaults, family.options):
        put(tree, layer, lambda key: f"family {family.name}")
    return tree


def put_model_defaults(tree: Tree, user: Tree, models: Mapping[str, Offer[Component]]) -> None:
    """Merge the defaults of the chosen model into the layer of the family, if that model ships with a plugin.

    Args:
        tree: The layer of the family, which is changed.
        user: What the user gives; it may name another model than the family does.
        models: The models that ship with plugins, by name.
    """
    name = value_at(user, "model") or value_at(tree, "model")
    if isinstance(name, str) and name in models:  # what else it may be is refused where all values are checked
        put(tree, models[name].declared.defaults, lambda key: f"model {name}")


_OF_INIT = ("rank", "alpha", "targets")
"""The keys of the section `lora` whose values are those of the file `lora.init`, where the user gives none."""


def leave_to_init(tree: Tree, user: Tree) -> None:
    """Unset what the file `lora.init` decides in the layer of the family and the model, if the user names such a file.

    Args:
        tree: The layer of the family and the model, which is changed.
        user: What the user gives.
    """
    section = tree.setdefault("lora", {})
    if value_at(user, "lora", "init") is not None and isinstance(section, dict):
        section.update({name: Leaf(None, "lora.init") for name in _OF_INIT})


def drop_foreign(tree: Tree, user: Tree, registry: Registry) -> tuple[str, ...]:
    """Remove the settings that the family gives to a component if the user chooses another component in its place.

    Args:
        tree: The layer of the family and the model, which is changed.
        user: What the user gives. If it has `data.path` without `data.use`, the name of the data source that reads
            this path is put in as `data.use`.
        registry: The plugins, which declare what files their data sources read.

    Returns:
        The dotted keys of the removed settings.
    """
    path = value_at(user, "data", "path")
    if isinstance(path, str) and value_at(user, "data", "use") is None:
        put(user, {"data": {"use": registry.source_for(path)}}, lambda key: "default, as data.path is given")
    dropped: list[str] = []
    section = tree.get("data")
    if value_at(user, "data", "sets") and isinstance(section, dict):
        section.pop("use", None)
        dropped += [".".join(key) for key, _ in leaves(section.pop("options", {}), ("data", "options"))]
    for role in (*ROLES, "data"):
        chosen, section = value_at(user, role, "use"), tree.get(role)
        if isinstance(section, dict) and chosen is not None and chosen != value_at(tree, role, "use"):
            options = section.pop("options", {})
            dropped += [".".join(key) for key, _ in leaves(options, (role, "options"))]
    return tuple(dropped)
