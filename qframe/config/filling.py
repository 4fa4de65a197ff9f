"""Plain tables into a `Config`, with the settings that plugins declare, and every problem at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from qframe.config.layers import Key, Tree, source_at
from qframe.config.schema import QUANTISABLE, ROLES, Config, TrainConfig
from qframe.config.strict import InvalidError, Problem, fields_of, nested, structure
from qframe.errors import ConfigError, PluginError, bullet_list
from qframe.plugins.hookspecs import Component, Family
from qframe.plugins.registry import Registry, nearest

MOST_SHOWN = 40


@attrs.frozen
class Declared:
    """The class that someone declares for a table of settings, None if they declare none."""

    owner: str
    cls: type | None


def declared_options(
    plain: dict[str, Any], family: Family, registry: Registry, problems: list[Problem]
) -> dict[Key, Declared]:
    """By the path of its table, what each chosen component and the recipe declare; unknown components are problems."""
    found: dict[Key, Declared] = {
        ("recipe",): _declared(
            registry, registry.recipe_family(family), "settings", f"the recipe of family {family.name!r}"
        )
    }
    for role in (*ROLES, "data"):
        section = plain.get(role)
        name = section.get("use") if isinstance(section, dict) else None
        kind = "source" if role == "data" else role
        if not isinstance(name, str):
            if role == "data" and isinstance(section, dict):
                found[role, "options"] = Declared("a data set that is not chosen (data.use)", None)
            continue
        try:
            component = registry.component(kind, name)
        except ConfigError as error:
            known = ", ".join(other.name for other in registry.components(kind)) or "none"
            problems.append(Problem((role, "use"), f"{error.message} (known: {known})"))
            continue
        found[role, "options"] = _declared(registry, component, "options", f"{kind} {name!r}")
    for role in QUANTISABLE:
        section = plain.get(role)
        table = section.get("quantise") if isinstance(section, dict) else None
        if not isinstance(table, dict):
            continue
        name = table.get("use")
        if not isinstance(name, str):
            found[role, "quantise", "options"] = Declared(f"no quantiser is chosen ({role}.quantise.use), which", None)
            continue
        try:
            component = registry.component("quantiser", name)
        except ConfigError as error:
            known = ", ".join(other.name for other in registry.components("quantiser")) or "none"
            problems.append(Problem((role, "quantise", "use"), f"{error.message} (known: {known})"))
            continue
        found[role, "quantise", "options"] = _declared(registry, component, "options", f"quantiser {name!r}")
    train, default = plain.setdefault("train", {}), TrainConfig().optimizer
    optimizer = train.get("optimizer", default) if isinstance(train, dict) else None
    if isinstance(optimizer, str):
        try:
            component = registry.component("optimizer", optimizer)
            found["train", "optimizer_options"] = _declared(registry, component, "options", f"optimizer {optimizer!r}")
        except ConfigError as error:
            if optimizer != default:  # without plugins nobody trains, and a configuration may still be read
                known = ", ".join(other.name for other in registry.components("optimizer")) or "none"
                problems.append(Problem(("train", "optimizer"), f"{error.message} (known: {known})"))
    return found


def _declared(registry: Registry, declared: Component | Family, field: str, owner: str) -> Declared:
    cls = registry.resolve(declared, field)
    if cls is not None and not (isinstance(cls, type) and attrs.has(cls)):
        raise PluginError(
            f"plugin {registry.plugin_of(declared)!r}: {getattr(declared, field)} is not an attrs class",
            "The settings of a component or recipe are an attrs class.",
        )
    return Declared(f"{owner} (plugin {registry.plugin_of(declared)})", cls)


def fill(plain: dict[str, Any], declared: Mapping[Key, Declared], problems: list[Problem]) -> Config | None:
    """The configuration, or None; `problems` grows by whatever is wrong. `plain` is used up."""
    for key, declaration in declared.items():
        table = plain
        for name in key[:-1]:
            table = table[name]
        given = table.pop(key[-1], {})
        if declaration.cls is None:
            if given != {}:
                problems.append(Problem(key, f"{declaration.owner} takes no options"))
            continue
        try:
            table[key[-1]] = structure(given, declaration.cls)
        except InvalidError as error:
            problems += [attrs.evolve(problem, path=(*key, *problem.path)) for problem in error.problems]
    try:
        return structure(plain, Config)
    except InvalidError as error:
        problems += error.problems
    return None


def known_keys(declared: Mapping[Key, Declared]) -> list[str]:
    """Every dotted key that this configuration could have."""

    def keys(cls: type, prefix: Key) -> Iterator[str]:
        for name, attribute in fields_of(cls).items():
            yield ".".join((*prefix, name))
            inner = nested(attribute)
            if inner is not None:
                yield from keys(inner, (*prefix, name))

    known = list(keys(Config, ()))
    for key, declaration in declared.items():
        known += keys(declaration.cls, key) if declaration.cls else ()
    return known


def describe_problems(problems: Iterable[Problem], tree: Tree, known: Iterable[str]) -> str:
    """The message: a line per problem, with its key, its source, and for an unknown key the nearest known one."""
    ordered = sorted(problems, key=lambda problem: problem.path)
    lines = []
    for problem in ordered[:MOST_SHOWN]:
        source = source_at(tree, problem.path)
        where = "" if source == "default" else f" ({source})"
        lines.append(f"{'.'.join(problem.path)}{where}: {problem.message}{_advice(problem, known)}")
    if len(ordered) > MOST_SHOWN:
        lines.append(f"and {len(ordered) - MOST_SHOWN} more")
    return f"configuration has {len(ordered)} problem{'s' if len(ordered) > 1 else ''}:\n{bullet_list(lines)}"


def _advice(problem: Problem, known: Iterable[str]) -> str:
    """For an unknown key: its nearest neighbour, else the nearest of all keys, else what its table has."""
    if problem.known is None:
        return ""
    *table, name = problem.path
    near = [".".join((*table, other)) for other in nearest(name, problem.known, 1)]
    if not near:
        lasts = {key.rpartition(".")[2]: key for key in known}
        near = [lasts[other] for other in nearest(name, lasts, 1, cutoff=0.8)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(problem.known)}"
