"""The layers of a configuration: nested tables in which every value knows where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

import attrs

from qframe.config.schema import ROLES
from qframe.errors import ConfigError
from qframe.plugins.hookspecs import Family
from qframe.plugins.registry import Registry

DEEPEST = 32

Key = tuple[str, ...]
"""A path into nested tables: ("train", "max_steps")."""


@attrs.frozen(eq=False)
class Leaf:
    """A value of one layer, and where it comes from."""

    value: Any
    source: str


Tree = dict[str, Union["Tree", Leaf]]


def put(tree: Tree, value: Mapping[str, Any], source: Callable[[Key], str], at: Key = ()) -> None:
    """Lay nested tables over the tree: tables merge, anything else replaces; None is not given."""
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
    """The source of values in a tree that is laid over another: never asked for, as its leaves bring their own."""
    raise AssertionError(f"{key} has no source")


def plain_tables(tree: Tree) -> dict[str, Any]:
    """The values alone."""
    return {name: plain_tables(node) if isinstance(node, dict) else node.value for name, node in tree.items()}


def value_at(tree: Tree, *key: str) -> Any:
    """The value at `key`; None where there is none, or a table."""
    node: Tree | Leaf | None = tree
    for name in key:
        node = node.get(name) if isinstance(node, dict) else None
    return node.value if isinstance(node, Leaf) else None


def leaves(node: Tree | Leaf, key: Key) -> Iterator[tuple[Key, Leaf]]:
    """Every value below `node`, which lies at `key`, with its path."""
    if isinstance(node, Leaf):
        yield key, node
    else:
        for name, inner in node.items():
            yield from leaves(inner, (*key, name))


def source_at(tree: Tree, key: Key) -> str:
    """Where the value at `key` comes from; of a table, its first value."""
    node: Tree | Leaf = tree
    for name in key:
        if isinstance(node, Leaf):
            break
        if name not in node:
            return "default"
        node = node[name]
    return next((leaf.source for _, leaf in leaves(node, ())), "default")


def choose_family(user: Tree, registry: Registry) -> Family:
    """The family that the user names. ConfigError if none is named, or it is unknown."""
    name = value_at(user, "family")
    if isinstance(name, str):
        return registry.family(name)
    known = ", ".join(family.name for family in registry.families()) or "none"
    if "family" in user:
        raise ConfigError("family: expected a string", f"Known families: {known}.")
    raise ConfigError("no family is chosen", f'Give --family NAME, or family = "NAME" in the file. Known: {known}.')


def family_layer(family: Family) -> Tree:
    """What a family chooses, and the options it lays under the user's."""
    tree: Tree = {}
    defaults: dict[str, Any] = {role: {"use": getattr(family, role)} for role in ROLES}
    defaults |= {"model": family.model, "data": {"use": family.data}}
    for layer in (defaults, family.options):
        put(tree, layer, lambda key: f"family {family.name}")
    return tree


def put_model_defaults(tree: Tree, user: Tree, registry: Registry) -> None:
    """Lay the defaults of a bundled checkpoint over the family's, if it is the model."""
    name = value_at(user, "model") or value_at(tree, "model")
    for component in registry.components("model"):
        if component.name == name:
            put(tree, component.defaults, lambda key: f"model {name}")


def drop_foreign(tree: Tree, user: Tree, registry: Registry) -> tuple[str, ...]:
    """Take out the family's options of components that the user replaced: they belong to the former one."""
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
