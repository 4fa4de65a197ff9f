"""Makes a `Config` of nested tables, including the settings that plugins declare, and reports all problems together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import attrs

from qframe.config.choices import CHOICES
from qframe.config.foreign import FORMER_VALUES, NAMES_ELSEWHERE
from qframe.config.layers import Key, Tree, source_at, value_at
from qframe.config.schema import Config
from qframe.config.strict import InvalidError, Problem, fields_of, nested, structure
from qframe.errors import bullet_list, nearest
from qframe.plugins.offers import ChosenFamily, UnknownNameError
from qframe.plugins.registry import Registry

MOST_SHOWN = 40


@attrs.frozen
class Declared:
    """The class that a plugin declares for a table of settings in a configuration.

    Attributes:
        owner: The recipe or component that has these settings, as the subject of a message.
        cls: The attrs class of the settings; None if the owner takes no settings.
    """

    owner: str
    cls: type | None


def declared_settings(plain: Mapping[str, Any], chosen: ChosenFamily) -> tuple[dict[Key, Declared], list[Problem]]:
    """Look up the classes that the recipe and each chosen component declare for their settings.

    Args:
        plain: The configuration as nested tables.
        chosen: The family of the configuration, with its components.

    Returns:
        The declared classes by the path of their table, and a problem for each key that names an unknown component.
    """
    classes = chosen.settings()
    owner = f"the recipe of family {chosen.family.name!r} (plugin {chosen.recipe.plugin})"
    found: dict[Key, Declared] = {("recipe",): Declared(owner, classes["recipe",])}
    problems = []
    for choice in CHOICES:
        if offer := chosen.components.get(choice.key):
            owner = f"{choice.kind} {offer.declared.name!r} (plugin {offer.plugin})"
            found[choice.settings] = Declared(owner, classes[choice.key])
        elif error := chosen.unknown.get(choice.key):
            if choice.name(plain) != choice.default:  # a configuration may be read where no plugin has an optimizer
                known = ", ".join(error.known) or "none"
                problems.append(Problem(choice.key, f"{error.message} (known: {known})"))
        elif choice.unnamed is not None:
            found[choice.settings] = Declared(choice.unnamed, None)
    return found, problems


def fill(plain: dict[str, Any], declared: Mapping[Key, Declared], problems: list[Problem]) -> Config | None:
    """Make a `Config` of nested tables; return None if `Config` itself cannot be made of them.

    A configuration may be returned although problems were found in the settings of components: look at `problems`.

    Args:
        plain: The configuration as nested tables. They are changed, and cannot be used again.
        declared: The classes that plugins declare for settings, by the path of their table.
        problems: Every problem that is found is appended here.
    """
    for key, declaration in declared.items():
        table: Any = plain
        for name in key[:-1]:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            continue  # where a table is expected there is another value, which is a problem of its own
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


def fill_sets(plain: dict[str, Any], registry: Registry, problems: list[Problem]) -> None:
    """Choose the source of each table of `data.sets`, and fill in its options.

    Args:
        plain: The configuration as nested tables. The tables of `data.sets` are replaced by copies.
        registry: The plugins, which declare the options of their sources.
        problems: Every problem that is found is appended here.
    """
    data = plain.get("data")
    sets = data.get("sets") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(sets, list | tuple):
        return
    filled = []
    for place, table in enumerate(sets):
        key = ("data", "sets", str(place))
        if not isinstance(table, Mapping):
            filled.append(table)  # which is a problem of its own
            continue
        own, path = dict(table), table.get("path")
        use = own.get("use", registry.source_for(path) if isinstance(path, str) else None)
        filled.append(own)
        if not isinstance(use, str):
            problems.append(Problem(key, "has neither path nor use"))
            continue
        own["use"] = use
        try:
            cls = registry.resolve(registry.component("source", use), "options")
            given = own.get("options", {})
            if cls is not None:
                own["options"] = structure(given, cls)
            elif given:
                problems.append(Problem((*key, "options"), f"source {use!r} takes no options"))
        except UnknownNameError as error:
            problems.append(Problem((*key, "use"), f"{error.message} (known: {', '.join(error.known)})"))
        except InvalidError as error:
            problems += [attrs.evolve(one, path=(*key, "options", *one.path)) for one in error.problems]
    weighted = [isinstance(table, Mapping) and table.get("weight") is not None for table in filled]
    if any(weighted) and not all(weighted):
        problems.append(Problem(("data", "sets"), "some sets have a weight and some have none: give all of them one"))
    data["sets"] = filled


def known_keys(declared: Mapping[Key, Declared]) -> list[str]:
    """List every dotted key that a configuration can have when its components declare these settings."""

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


def describe_problems(problems: Iterable[Problem], tree: Tree, known: Collection[str]) -> str:
    """Word the message of an error: one line per problem with the key, the value's source, and what is wrong.

    Args:
        problems: The problems; the first 40, sorted by key, get a line.
        tree: The configuration with the source of each value.
        known: Every dotted key that the configuration can have. For an unknown key the most similar one is suggested.
    """
    ordered = sorted(problems, key=lambda problem: problem.path)
    lines = []
    for problem in ordered[:MOST_SHOWN]:
        source = source_at(tree, problem.path)
        where = "" if source == "default" else f" ({source})"
        key = ".".join(problem.path)
        advice = FORMER_VALUES.get((key, str(value_at(tree, *problem.path)))) or _advice(problem, known)
        lines.append(f"{key}{where}: {problem.message}{advice}")
    if len(ordered) > MOST_SHOWN:
        lines.append(f"and {len(ordered) - MOST_SHOWN} more")
    return f"configuration has {len(ordered)} problem{'s' if len(ordered) > 1 else ''}:\n{bullet_list(lines)}"


def _advice(problem: Problem, known: Collection[str]) -> str:
    """Suggest what an unknown key may mean: a name of another trainer, a similar key, or any key of its table."""
    if problem.known is None:
        return ""
    *table, name = problem.path
    elsewhere = NAMES_ELSEWHERE.get(name)
    if elsewhere is not None and elsewhere in known:
        return f"; here it is {elsewhere}"
    near = [".".join((*table, other)) for other in nearest(name, problem.known, 1)]
    if not near:
        lasts = {key.rpartition(".")[2]: key for key in known}
        near = [lasts[other] for other in nearest(name, lasts, 1, cutoff=0.8)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(problem.known)}"
