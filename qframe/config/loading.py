"""Loads a configuration: merges its layers, reads them strictly, and reports all problems in one error.

The layers are, each overriding the one before: the defaults of the schema, those of the family, those of a model that
ships with a plugin, a TOML file, values given in Python or by options of a command, and `--set key=value`. No value is
converted: "false" is not a bool and 3.7 is not a whole number. The one exception is that a whole number is accepted
where a float is expected. Environment variables are not expanded, and no key takes an import path. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from qframe.config.choices import choose
from qframe.config.filling import declared_settings, describe_problems, fill, fill_sets, known_keys
from qframe.config.layers import (
    choose_family,
    drop_foreign,
    family_layer,
    leave_to_init,
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
from qframe.plugins.offers import ChosenFamily
from qframe.plugins.registry import Registry, load_registry


@attrs.frozen(eq=False, kw_only=True)
class Resolved:
    """A configuration, and the source of each of its values.

    Attributes:
        config: The configuration.
        sources: Where the value of each dotted key comes from: "default", "family NAME", "model NAME", "FILE:line",
            "argument" or "--set".
        dropped: Dotted keys of settings that the family gives to a component in whose place the user chose another.
            They were left out.
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
    """Load the configuration of a family: its defaults, overridden by a TOML file, then `values`, then `overrides`.

    Args:
        path: A TOML file.
        family: The name of the family. It overrides the key `family` of every layer.
        overrides: Texts "key=value" with a dotted key, as for `--set`.
        values: Nested tables with the keys of `qframe.config.schema`; a value of None counts as not given.
        registry: The plugins to choose from; by default those that are installed.

    Raises:
        ConfigError: The file cannot be read, or the configuration has problems. The message lists every problem with
            its key, what was expected and what was found.
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
    """Load a configuration as `load_config` does, and tell the source of every value.

    The arguments and errors are those of `load_config`.
    """
    registry = load_registry() if registry is None else registry
    user, problems = read_user(path, family, overrides, values or {})
    chosen = choose_family(user, registry)
    tree = family_layer(chosen.family)
    put_model_defaults(tree, user, chosen.models)
    leave_to_init(tree, user)
    dropped = drop_foreign(tree, user, registry)
    put(tree, user, own_source)
    plain = plain_tables(tree)
    chosen = choose(plain, registry)  # all layers have been read, so that the components are known
    declared, unknown = declared_settings(plain, chosen)
    problems += unknown
    fill_sets(plain, registry, problems)
    config = fill(plain, declared, problems)
    if config is None or problems:
        hint = f"`qframe config show --family {chosen.family.name}` lists every key."
        hint += "".join(f"\nNot loaded: {broken}" for broken in registry.broken)
        raise ConfigError(describe_problems(problems, tree, known_keys(declared)), hint)
    sources = {key: source_at(tree, tuple(key.split("."))) for key in config_items(config)}
    return Resolved(config=config, sources=sources, dropped=dropped)


def chosen_family(
    path: str | Path | None, *, family: str | None, overrides: Iterable[str], registry: Registry
) -> ChosenFamily:
    """Look up the family that a configuration names. Its other keys are not checked.

    Args:
        path: A TOML file.
        family: The name of the family. It overrides the key `family` of the file and of `overrides`.
        overrides: Texts "key=value" with a dotted key.
        registry: The plugins to choose from.

    Raises:
        ConfigError: The configuration names no family, or one that no plugin offers.
    """
    user, _ = read_user(path, family, overrides, {})
    return choose_family(user, registry)
