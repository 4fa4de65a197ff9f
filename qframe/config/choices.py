"""Which keys of a configuration name a component, and what the registry knows of those that are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qframe.config.layers import Key
from qframe.config.schema import QUANTISABLE, ROLES, TrainConfig
from qframe.plugins.offers import ChosenFamily
from qframe.plugins.registry import Registry


@attrs.frozen(kw_only=True)
class Choice:
    """A key of the configuration that names a component.

    Attributes:
        kind: The kind of component that it names.
        key: The path of the key.
        settings: The path of the table that holds the settings of the component.
        unnamed: Subject of the message that refuses settings while the key names no component; None for a key that
            must name one, whose absence is an error of its own.
        default: The name that holds where the key is not given; None for a key without a default.
    """

    kind: str
    key: Key
    settings: Key
    unnamed: str | None = None
    default: str | None = None

    def name(self, tables: Mapping[str, Any]) -> object:
        """What nested tables give for the key, else its default; None also where the table around it is none."""
        table = table_at(tables, self.key[:-1])
        if table is None:
            return self.default if self.key[0] not in tables else None
        return table.get(self.key[-1], self.default)


CHOICES: tuple[Choice, ...] = (
    *(Choice(kind=role, key=(role, "use"), settings=(role, "options")) for role in ROLES),
    Choice(
        kind="source",
        key=("data", "use"),
        settings=("data", "options"),
        unnamed="a data set that is not chosen (data.use)",
    ),
    *(
        Choice(
            kind="quantiser",
            key=(role, "quantise", "use"),
            settings=(role, "quantise", "options"),
            unnamed=f"no quantiser is chosen ({role}.quantise.use), which",
        )
        for role in QUANTISABLE
    ),
    Choice(
        kind="optimizer",
        key=("train", "optimizer"),
        settings=("train", "optimizer_options"),
        default=TrainConfig().optimizer,
    ),
)


def table_at(tables: Mapping[str, Any], key: Key) -> Mapping[str, Any] | None:
    """The table at a path in nested tables; None where there is none."""
    found: Any = tables
    for name in key:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def choose(tables: Mapping[str, Any], registry: Registry) -> ChosenFamily:
    """Look up the family of a configuration and every component that the configuration names.

    Args:
        tables: The configuration as nested tables.
        registry: The plugins to choose from.

    Raises:
        ConfigError: No plugin offers the family or one of its transforms. Unknown components are no error yet: see
            `ChosenFamily.unknown`.
        PluginError: The family takes the recipe of a family that has none.
    """
    named = {choice.key: (choice.kind, choice.name(tables)) for choice in CHOICES}
    components = {key: (kind, name) for key, (kind, name) in named.items() if isinstance(name, str)}
    return registry.choose(tables["family"], components)
