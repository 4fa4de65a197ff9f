"""Lists the configuration keys that name a component, and looks the named components up in the registry."""

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
        kind: The kind of component that the key names, such as "encoder".
        key: The path of the key.
        settings: The path of the table that holds the settings of the component.
        unnamed: The subject of the error message for settings of a component that the key does not name. None for a
            key that must be given; then the error is that the key is missing.
        default: The name of the component that is used if the key is not given; None for a key without a default.
    """

    kind: str
    key: Key
    settings: Key
    unnamed: str | None = None
    default: str | None = None

    def name(self, tables: Mapping[str, Any]) -> object:
        """Return the value of the key in nested tables, else its default.

        Returns None if another value stands where the table around the key is expected.
        """
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
    """Return the table at a path in nested tables; None if there is none at this path."""
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
        ConfigError: No plugin offers the family or one of its transforms. A component that no plugin offers raises
            no error here; it is listed in `ChosenFamily.unknown`.
        PluginError: The family takes the recipe of another family, which does not exist or has no recipe of its own.
    """
    named = {choice.key: (choice.kind, choice.name(tables)) for choice in CHOICES}
    components = {key: (kind, name) for key, (kind, name) in named.items() if isinstance(name, str)}
    return registry.choose(tables["family"], components)
