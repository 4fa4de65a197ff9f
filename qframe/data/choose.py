"""Builds the data source that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from qframe.config.schema import Config, DataConfig, DataSetConfig
from qframe.data.mixture import Member, MixtureSource
from qframe.errors import ConfigError, DataError, PluginError
from qframe.interfaces import RecordSource
from qframe.plugins.registry import Registry


def open_source(config: Config, registry: Registry) -> RecordSource:
    """Build the data source that `data.use` names, or the mixture of those in `data.sets`, with options and paths.

    Raises:
        ConfigError: `data.use` is not set, because the user named no data set and the family has none of its own.
        DataError: `data.path` does not exist.
        PluginError: The plugin that offers this source does not build a `RecordSource`.
    """
    if config.data.sets:
        names = _names(config.data.sets)
        return MixtureSource(
            [
                Member(name, open_source(attrs.evolve(config, data=_alone(one)), registry), one.weight)
                for name, one in zip(names, config.data.sets, strict=True)
            ]
        )
    if config.data.use is None:
        raise ConfigError(
            f"data: family {config.family!r} has no data set of its own", "Give --data PATH, or set data.use."
        )
    path = None if config.data.path is None else Path(config.data.path).expanduser()
    if path is not None and not path.exists():
        suffixes = "".join(f", or a file {suffix}" for suffix in registry.sources_by_suffix())
        raise DataError(f"data.path: {path} does not exist", f"Give a folder of pictures{suffixes}.")
    component = registry.component("source", config.data.use)
    source = registry.resolve(component)(config.data.options, path)
    if not isinstance(source, RecordSource):
        raise PluginError(
            f"source {component.name!r} (plugin {registry.plugin_of(component)}) gives a {type(source).__name__}, "
            "expected a RecordSource"
        )
    return source


def _alone(one: DataSetConfig) -> DataConfig:
    """The section `data` that chooses one data set of several."""
    return DataConfig(use=one.use, path=one.path, options=one.options)


def _names(sets: Sequence[DataSetConfig]) -> list[str]:
    """A name for each data set: the last part of its path, or its source, with a number if it is taken."""
    names: list[str] = []
    for one in sets:
        base = (one.path and Path(one.path).expanduser().resolve().name) or one.use or "set"
        number, name = 1, base
        while name in names:
            number, name = number + 1, f"{base}-{number + 1}"
        names.append(name)
    return names
