"""A finished configuration: its keys, its text, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from qframe.config.schema import Config
from qframe.config.strict import fields_of, unstructure


def config_items(config: Config) -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key, options and the recipe's settings included."""

    def leaves(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
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
