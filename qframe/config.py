"""From names and values to a `Config`: merged in layers, filled strictly, every error at once. Imports no torch.

The layers, each over the one before: defaults of the schema, the family's options, those of a bundled model, a TOML
file, values given in Python or by flags, `--set key=value`. Nothing is coerced: "false" is no bool and 3.7 no whole
number; only a whole number passes for a number. Environment variables are not expanded, and no key takes an import path.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import attrs
import tomli

from qframe.errors import ConfigError, PluginError, bullet_list
from qframe.hookspecs import Component, Family
from qframe.plugins import Registry, load_registry, nearest
from qframe.schema import ROLES, Config
from qframe.strict import InvalidError, Problem, fields_of, nested, structure, unstructure

LARGEST_FILE = 256 * 1024
MOST_DOTS = 32
MOST_SHOWN = 40

ARGUMENT = "argument"
OVERRIDE = "--set"
SOURCES = {".jsonl": "jsonl", ".csv": "csv"}
"""The source that reads `data.path`, unless another is named: by the path's suffix, else "folder"."""

Key = tuple[str, ...]
"""A path into nested tables: ("train", "max_steps")."""


@attrs.frozen(eq=False)
class _Leaf:
    """A value of one layer, and where it comes from."""

    value: Any
    source: str


_Tree = dict[str, Union["_Tree", _Leaf]]


@attrs.frozen(eq=False, kw_only=True)
class Resolved:
    """A configuration and where it comes from.

    sources: for every leaf key "default", "family NAME", "model NAME", "FILE:line", "argument" or "--set".
    dropped: the family's options that belong to a component which is not in use.
    """

    config: Config
    sources: Mapping[str, str]
    dropped: tuple[str, ...] = ()


def load_config(
    path: str | Path | None = None,
    *,
    family: str | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Config:
    """The configuration of a family, under a TOML file, under values, under `key=value` overrides.

    `values` are nested tables with the keys of `qframe.schema`; None in them means "not given". ConfigError lists
    every problem with its key path, what was expected and what was found.
    """
    return resolve_config(path, family=family, overrides=overrides, values=values, registry=registry).config


def resolve_config(
    path: str | Path | None = None,
    *,
    family: str | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Resolved:
    """As `load_config`, with the source of every value."""
    registry = load_registry() if registry is None else registry
    user, problems = _read_user(path, family, overrides, values or {})
    chosen = _choose_family(user, registry)
    tree = _family_layer(chosen)
    _put_model_defaults(tree, user, registry)
    dropped = _drop_foreign(tree, user)
    _put(tree, user, _source_of)
    plain = _plain(tree)
    declared = _declared_options(plain, chosen, registry, problems)
    config = _structure(plain, declared, problems)
    if config is None or problems:
        hint = f"`qframe config show --family {chosen.name}` lists every key."
        hint += "".join(f"\nNot loaded: {broken}" for broken in registry.broken)
        raise ConfigError(_message(problems, tree, _known_keys(declared)), hint)
    sources = {key: _source(tree, tuple(key.split("."))) for key in config_items(config)}
    return Resolved(config=config, sources=sources, dropped=dropped)


def chosen_family(
    path: str | Path | None, *, family: str | None, overrides: Iterable[str], registry: Registry
) -> Family:
    """The family that a configuration means, whatever else is in it. ConfigError if it names none that is known."""
    user, _ = _read_user(path, family, overrides, {})
    return _choose_family(user, registry)


def config_items(config: Config) -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key, options and the recipe's settings included."""

    def leaves(value: Any, key: Key) -> Iterator[tuple[str, Any]]:
        if not attrs.has(type(value)):
            yield ".".join(key), value
            return
        for name in fields_of(type(value)):
            yield from leaves(getattr(value, name), (*key, name))

    return dict(leaves(config, ()))


def dump_config(config: Config) -> str:
    """The configuration as TOML: `load_config` of it gives an equal one. Keys that are None are left out."""
    import tomli_w

    return tomli_w.dumps(unstructure(config))


def diff_config(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """What differs: (key, old value, new value), None for a key that one side has not."""
    before, after = config_items(old), config_items(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


# Reading


def _read_user(
    path: str | Path | None, family: str | None, overrides: Iterable[str], values: Mapping[str, Any]
) -> tuple[_Tree, list[Problem]]:
    """Everything a user gives, and which overrides cannot be read."""
    problems: list[Problem] = []
    user: _Tree = {}
    if path is not None:
        _read_file(Path(path), user)
    _put(user, values, lambda key: ARGUMENT)
    for override in overrides:
        problems += _read_override(override, user)
    if family is not None:
        user["family"] = _Leaf(family, ARGUMENT)
    return user, problems


def _read_file(path: Path, tree: _Tree) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a file", "--config takes a TOML file.")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason})", "Check the path of the configuration file.") from error
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {LARGEST_FILE} bytes", "A configuration file is small.")
    try:
        text = raw.decode("utf-8")
        _check_dots(text, str(path))
        tables = tomli.loads(text)
        lines = _line_numbers(text)
        _put(tree, tables, lambda key: _place(path, key, lines))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _check_dots(text: str, where: str) -> None:
    # A dotted key costs quadratic time and memory: one of 200 KB took all of 23 GB.
    # Lines as TOML has them: str.splitlines breaks at more characters, which a quoted key may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ConfigError(f"{where}:{number}: more than {MOST_DOTS} dots in a line", "Break the line.")


def _line_numbers(text: str) -> dict[Key, int]:
    """Where keys and tables begin, as far as simple lines tell; only messages use it."""
    lines: dict[Key, int] = {}
    table: Key = ()
    inside = False
    for number, line in enumerate(text.split("\n"), 1):
        if not inside:
            before, sign, _ = line.partition("=")
            if line.lstrip().startswith("["):
                table = _split(line.strip(" \t\r[").partition("]")[0])
                lines.setdefault(table, number)
            elif sign:
                lines.setdefault((*table, *_split(before)), number)
        if (line.count('"""') + line.count("'''")) % 2:
            inside = not inside
    return lines


def _split(dotted: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _place(path: Path, key: Key, lines: Mapping[Key, int]) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{path}:{lines[key[:length]]}"
    return str(path)


def _read_override(override: str, tree: _Tree) -> list[Problem]:
    dotted, sign, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not sign or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in key) or len(key) > MOST_DOTS:
        shown = override if len(override) <= 60 else override[:60] + "..."
        return [Problem((OVERRIDE,), f"expected key=value with a dotted key, got {shown!r}")]
    if len(override.encode("utf-8", "surrogatepass")) > LARGEST_FILE:
        return [Problem(key, f"{OVERRIDE} is larger than {LARGEST_FILE} bytes")]
    value: Any = _value_of(text)
    for name in reversed(key):
        value = {name: value}
    _put(tree, value, lambda _: OVERRIDE)
    return []


def _value_of(text: str) -> Any:
    """The text as a TOML value, else as it stands."""
    if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
        return text
    try:
        tables = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tables["value"] if list(tables) == ["value"] else text


# Layers


def _put(tree: _Tree, value: Mapping[str, Any], source: Callable[[Key], str], at: Key = ()) -> None:
    """Lay nested tables over the tree: tables merge, anything else replaces; None is not given."""
    if len(at) > MOST_DOTS:
        raise ConfigError(f"{'.'.join(at[:3])}...: tables nested more than {MOST_DOTS} deep")
    for name, item in value.items():
        key = (*at, str(name))
        if isinstance(item, Mapping):
            inner = tree.get(key[-1])
            if not isinstance(inner, dict):
                inner = tree[key[-1]] = {}
            _put(inner, item, source, key)
        elif isinstance(item, _Leaf):
            tree[key[-1]] = item
        elif item is not None:
            tree[key[-1]] = _Leaf(item, source(key))


def _source_of(key: Key) -> str:
    raise AssertionError(f"{key} has no source")  # a tree laid over a tree brings its own


def _plain(tree: _Tree) -> dict[str, Any]:
    return {name: _plain(node) if isinstance(node, dict) else node.value for name, node in tree.items()}


def _at(tree: _Tree, *key: str) -> Any:
    """The value at `key`; None where there is none, or a table."""
    node: _Tree | _Leaf | None = tree
    for name in key:
        node = node.get(name) if isinstance(node, dict) else None
    return node.value if isinstance(node, _Leaf) else None


def _leaves(node: _Tree | _Leaf, key: Key) -> Iterator[tuple[Key, _Leaf]]:
    if isinstance(node, _Leaf):
        yield key, node
    else:
        for name, inner in node.items():
            yield from _leaves(inner, (*key, name))


def _source(tree: _Tree, key: Key) -> str:
    """Where the value at `key` comes from; of a table, its first value."""
    node: _Tree | _Leaf = tree
    for name in key:
        if isinstance(node, _Leaf):
            break
        if name not in node:
            return "default"
        node = node[name]
    return next((leaf.source for _, leaf in _leaves(node, ())), "default")


def _choose_family(user: _Tree, registry: Registry) -> Family:
    name = _at(user, "family")
    if isinstance(name, str):
        return registry.family(name)
    known = ", ".join(family.name for family in registry.families()) or "none"
    if "family" in user:
        raise ConfigError("family: expected a string", f"Known families: {known}.")
    raise ConfigError("no family is chosen", f'Give --family NAME, or family = "NAME" in the file. Known: {known}.')


def _family_layer(family: Family) -> _Tree:
    tree: _Tree = {}
    defaults: dict[str, Any] = {role: {"use": getattr(family, role)} for role in ROLES}
    defaults |= {"model": family.model, "data": {"use": family.data}}
    for layer in (defaults, family.options):
        _put(tree, layer, lambda key: f"family {family.name}")
    return tree


def _put_model_defaults(tree: _Tree, user: _Tree, registry: Registry) -> None:
    """Lay the defaults of a bundled checkpoint over the family's, if it is the model."""
    name = _at(user, "model") or _at(tree, "model")
    for component in registry.components("model"):
        if component.name == name:
            _put(tree, component.defaults, lambda key: f"model {name}")


def _drop_foreign(tree: _Tree, user: _Tree) -> tuple[str, ...]:
    """Take out the family's options of components that the user replaced: they belong to the former one."""
    path = _at(user, "data", "path")
    if isinstance(path, str) and _at(user, "data", "use") is None:
        use = SOURCES.get(Path(path).suffix.lower(), "folder")
        _put(user, {"data": {"use": use}}, lambda key: "default, as data.path is given")
    dropped: list[str] = []
    for role in (*ROLES, "data"):
        chosen, section = _at(user, role, "use"), tree.get(role)
        if isinstance(section, dict) and chosen is not None and chosen != _at(tree, role, "use"):
            options = section.pop("options", {})
            dropped += [".".join(key) for key, _ in _leaves(options, (role, "options"))]
    return tuple(dropped)


# Filling


@attrs.frozen
class _Declared:
    """The class that someone declares for a table of settings, None if they declare none."""

    owner: str
    cls: type | None


def _declared_options(
    plain: dict[str, Any], family: Family, registry: Registry, problems: list[Problem]
) -> dict[Key, _Declared]:
    found: dict[Key, _Declared] = {
        ("recipe",): _declared(registry, family, "settings", f"the recipe of family {family.name!r}")
    }
    for role in (*ROLES, "data"):
        section = plain.get(role)
        name = section.get("use") if isinstance(section, dict) else None
        kind = "source" if role == "data" else role
        if not isinstance(name, str):
            if role == "data" and isinstance(section, dict):
                found[role, "options"] = _Declared("a data set that is not chosen (data.use)", None)
            continue
        try:
            component = registry.component(kind, name)
        except ConfigError as error:
            known = ", ".join(other.name for other in registry.components(kind)) or "none"
            problems.append(Problem((role, "use"), f"{error.message} (known: {known})"))
            continue
        found[role, "options"] = _declared(registry, component, "options", f"{kind} {name!r}")
    return found


def _declared(registry: Registry, declared: Component | Family, field: str, owner: str) -> _Declared:
    cls = registry.resolve(declared, field)
    if cls is not None and not (isinstance(cls, type) and attrs.has(cls)):
        raise PluginError(
            f"plugin {registry.plugin_of(declared)!r}: {getattr(declared, field)} is not an attrs class",
            "The settings of a component or recipe are an attrs class.",
        )
    return _Declared(f"{owner} (plugin {registry.plugin_of(declared)})", cls)


def _structure(plain: dict[str, Any], declared: Mapping[Key, _Declared], problems: list[Problem]) -> Config | None:
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


def _known_keys(declared: Mapping[Key, _Declared]) -> list[str]:
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


def _message(problems: Iterable[Problem], tree: _Tree, known: Iterable[str]) -> str:
    ordered = sorted(problems, key=lambda problem: problem.path)
    lines = []
    for problem in ordered[:MOST_SHOWN]:
        source = _source(tree, problem.path)
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
