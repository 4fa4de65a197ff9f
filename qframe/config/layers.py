"""Lays the layers of a configuration over one another, in nested tables whose values know where they come from."""

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
    """A value of one layer.

    Attributes:
        value: The value, as TOML or Python gives it.
        source: Where it comes from, as messages and `qframe config show` name it.
    """

    value: Any
    source: str


Tree = dict[str, Union["Tree", Leaf]]


def put(tree: Tree, value: Mapping[str, Any], source: Callable[[Key], str], at: Key = ()) -> None:
    """Lay nested tables over the tree: a table is merged with the table below it, any other value replaces it.

    Args:
        tree: The tree, which is changed.
        value: The tables; a value of None counts as not given.
        source: Tells for the path of a key where its value comes from.
        at: The path of the tables in the tree.
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
    """The `source` of `put` for a tree that is laid over another: it is never called, as leaves bring their source."""
    raise AssertionError(f"{key} has no source")


def plain_tables(tree: Tree) -> dict[str, Any]:
    """The tree as plain tables, without the sources of its values."""
    return {name: plain_tables(node) if isinstance(node, dict) else node.value for name, node in tree.items()}


def value_at(tree: Tree, *key: str) -> Any:
    """The value at the path `key`; None where there is no value, or a table."""
    node: Tree | Leaf | None = tree
    for name in key:
        node = node.get(name) if isinstance(node, dict) else None
    return node.value if isinstance(node, Leaf) else None


def leaves(node: Tree | Leaf, key: Key) -> Iterator[tuple[Key, Leaf]]:
    """Every leaf of `node` with its path.

    Args:
        key: The path of `node` itself.
    """
    if isinstance(node, Leaf):
        yield key, node
    else:
        for name, inner in node.items():
            yield from leaves(inner, (*key, name))


def source_at(tree: Tree, key: Key) -> str:
    """Where the value at the path `key` comes from; for a table, where its first value does."""
    node: Tree | Leaf = tree
    for name in key:
        if isinstance(node, Leaf):
            break
        if name not in node:
            return "default"
        node = node[name]
    return next((leaf.source for _, leaf in leaves(node, ())), "default")


def choose_family(user: Tree, registry: Registry) -> ChosenFamily:
    """The family that the user names. ConfigError if the user names none, or one that no plugin offers."""
    name = value_at(user, "family")
    if isinstance(name, str):
        return registry.choose(name)
    known = ", ".join(family.name for family in registry.families()) or "none"
    if "family" in user:
        raise ConfigError("family: expected a string", f"Known families: {known}.")
    raise ConfigError("no family is chosen", f'Give --family NAME, or family = "NAME" in the file. Known: {known}.')


def family_layer(family: Family) -> Tree:
    """The lowest layer: the components that a family chooses, and its defaults."""
    tree: Tree = {}
    defaults: dict[str, Any] = {role: {"use": getattr(family, role)} for role in ROLES}
    defaults |= {"model": family.model, "data": {"use": family.data}}
    for layer in (defaults, family.options):
        put(tree, layer, lambda key: f"family {family.name}")
    return tree


def put_model_defaults(tree: Tree, user: Tree, models: Mapping[str, Offer[Component]]) -> None:
    """Lay the defaults that a model brings over those of the family, if it ships with a plugin.

    Args:
        tree: The layer of the family, which is changed.
        user: What the user gives, which may name another model than the family.
        models: The models that ship with plugins, by name.
    """
    name = value_at(user, "model") or value_at(tree, "model")
    if name in models:
        put(tree, models[name].declared.defaults, lambda key: f"model {name}")


def drop_foreign(tree: Tree, user: Tree, registry: Registry) -> tuple[str, ...]:
    """Take out the settings that the family gives to components which the user replaces by others.

    Args:
        tree: The layer of the family and the model, which is changed.
        user: What the user gives. If it has `data.path` without `data.use`, the source that reads this path is added.
        registry: Knows which source reads which files.

    Returns:
        The dotted keys of the settings that were taken out.
    """
    path = value_at(user, "data", "path")
    if isinstance(path, str) and value_at(user, "data", "use") is None:
        put(user, {"data": {"use": registry.source_for(path)}}, lambda key: "default, as data.path is given")
    dropped: list[str] = []
    for role in (*ROLES, "data"):
        chosen, section = value_at(user, role, "use"), tree.get(role)
        if isinstance(section, dict) and chosen is not None and chosen != value_at(tree, role, "use"):
            options = section.pop("options", {})
            dropped += [".".join(key) for key, _ in leaves(options, (role, "options"))]
    return tuple(dropped)
