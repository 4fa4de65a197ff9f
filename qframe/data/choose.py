"""Which data source a configuration means."""

from __future__ import annotations

from pathlib import Path

from qframe.config.schema import Config
from qframe.errors import ConfigError, DataError, PluginError
from qframe.interfaces import RecordSource
from qframe.plugins.registry import Registry


def open_source(config: Config, registry: Registry) -> RecordSource:
    """The source of `data.use`, ready to list its records.

    ConfigError if the configuration names none and the family has none; DataError if the path does not exist.
    """
    if config.data.use is None:
        raise ConfigError(
            f"data: family {config.family!r} has no data set of its own", "Give --data PATH, or set data.use."
        )
    path = None if config.data.path is None else Path(config.data.path).expanduser()
    if path is not None and not path.exists():
        raise DataError(
            f"data.path: {path} does not exist", "Give a folder of pictures, or a .jsonl, .csv or .parquet file."
        )
    component = registry.component("source", config.data.use)
    source = registry.resolve(component)(config.data.options, path)
    if not isinstance(source, RecordSource):
        raise PluginError(
            f"source {component.name!r} (plugin {registry.plugin_of(component)}) gives a {type(source).__name__}, "
            "expected a RecordSource"
        )
    return source
