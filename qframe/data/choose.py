"""Builds the data source that a configuration names."""

from __future__ import annotations

from pathlib import Path

from qframe.config.schema import Config
from qframe.errors import ConfigError, DataError, PluginError
from qframe.interfaces import RecordSource
from qframe.plugins.registry import Registry


def open_source(config: Config, registry: Registry) -> RecordSource:
    """Build the data source that `data.use` names, with the options and the path of the configuration.

    Raises:
        ConfigError: `data.use` is not set, because the user named no data set and the family has none of its own.
        DataError: `data.path` does not exist.
        PluginError: The plugin that offers this source does not build a `RecordSource`.
    """
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
