"""A finished configuration as a list of keys and as TOML, and how two configurations differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from qframe.config.schema import Config
from qframe.config.strict import fields_of, unstructure


def config_items(config: Config) -> dict[str, Any]:
    """Every value of a configuration by its dotted key, the settings of components and recipe included."""

    def leaves(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if not attrs.has(type(value)):
            yield ".".join(key), value
            return
        for name in fields_of(type(value)):
            yield from leaves(getattr(value, name), (*key, name))

    return dict(leaves(config, ()))


def dump_config(config: Config) -> str:
    """The configuration as TOML, which `load_config` reads as an equal one. Keys whose value is None are left out."""
    import tomli_w

    return tomli_w.dumps(unstructure(config))


def diff_config(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """The keys whose values differ: (key, old value, new value), with None where one side lacks the key."""
    before, after = config_items(old), config_items(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
