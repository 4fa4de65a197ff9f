"""Writes a loaded configuration as a list of keys or as TOML, and compares two configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from qframe.config.schema import Config
from qframe.config.strict import fields_of, unstructure


def config_items(config: Config) -> dict[str, Any]:
    """Return every value of a configuration by its dotted key, including the settings of components and recipe."""

    def leaves(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if not attrs.has(type(value)):
            yield ".".join(key), value
            return
        for name in fields_of(type(value)):
            yield from leaves(getattr(value, name), (*key, name))

    return dict(leaves(config, ()))


def dump_config(config: Config) -> str:
    """Write a configuration as TOML, from which `load_config` reads an equal one. Keys that are None are left out."""
    import tomli_w

    return tomli_w.dumps(unstructure(config))


def diff_config(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """List the keys whose values differ as (key, old value, new value); a side that lacks the key has None."""
    before, after = config_items(old), config_items(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
