"""From names and values to a `Config`: merged in layers, filled strictly, every error at once. Imports no torch.

The layers, each over the one before: defaults of the schema, the family's options, those of a bundled model, a TOML
file, values given in Python or by flags, `--set key=value`. Nothing is coerced: "false" is no bool and 3.7 no whole
number; only a whole number passes for a number. Environment variables are not expanded, and no key takes an import
path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from qframe.config.filling import declared_options, describe_problems, fill, known_keys
from qframe.config.layers import (
    choose_family,
    drop_foreign,
    family_layer,
    own_source,
    plain_tables,
    put,
    put_model_defaults,
    source_at,
)
from qframe.config.reading import read_user
from qframe.config.schema import Config
from qframe.config.stored import config_items
from qframe.errors import ConfigError
from qframe.plugins.hookspecs import Family
from qframe.plugins.registry import Registry, load_registry


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

    `values` are nested tables with the keys of `qframe.config.schema`; None in them means "not given". ConfigError
    lists every problem with its key path, what was expected and what was found.
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
    user, problems = read_user(path, family, overrides, values or {})
    chosen = choose_family(user, registry)
    tree = family_layer(chosen)
    put_model_defaults(tree, user, registry)
    dropped = drop_foreign(tree, user, registry)
    put(tree, user, own_source)
    plain = plain_tables(tree)
    declared = declared_options(plain, chosen, registry, problems)
    config = fill(plain, declared, problems)
    if config is None or problems:
        hint = f"`qframe config show --family {chosen.name}` lists every key."
        hint += "".join(f"\nNot loaded: {broken}" for broken in registry.broken)
        raise ConfigError(describe_problems(problems, tree, known_keys(declared)), hint)
    sources = {key: source_at(tree, tuple(key.split("."))) for key in config_items(config)}
    return Resolved(config=config, sources=sources, dropped=dropped)


def chosen_family(
    path: str | Path | None, *, family: str | None, overrides: Iterable[str], registry: Registry
) -> Family:
    """The family that a configuration means, whatever else is in it. ConfigError if it names none that is known."""
    user, _ = read_user(path, family, overrides, {})
    return choose_family(user, registry)
