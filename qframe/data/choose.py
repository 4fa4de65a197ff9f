"""Which data source a configuration means."""

from __future__ import annotations

from pathlib import Path

from qframe.errors import ConfigError, DataError
from qframe.interfaces import RecordSource
from qframe.plugins import Registry, resolve
from qframe.schema import Config

_BY_SUFFIX = {".jsonl": "jsonl", ".csv": "csv"}


def source_name(config: Config, registry: Registry) -> str:
    """The registered name of the source: data.use, else by data.path's kind, else the family's own.

    ConfigError if the configuration names none and the family has none.
    """
    if config.data.use is not None:
        return config.data.use
    if config.data.path is not None:
        return _BY_SUFFIX.get(Path(config.data.path).suffix.lower(), "folder")
    name = registry.family(config.family).data
    if name is None:
        raise ConfigError(
            f"data: family {config.family!r} has no data set of its own", "Give --data PATH, or set data.use."
        )
    return name


def open_source(config: Config, registry: Registry) -> RecordSource:
    """The source, ready to list its records. DataError if the path does not exist."""
    name = source_name(config, registry)
    path = None if config.data.path is None else Path(config.data.path).expanduser()
    if path is not None and not path.exists():
        raise DataError(f"data.path: {path} does not exist", "Give a folder of pictures, or a .jsonl or .csv file.")
    component = registry.component("source", name)
    source = resolve(component.target)(config.data.options, path)
    if not isinstance(source, RecordSource):
        raise ConfigError(f"data.use: {name!r} gives a {type(source).__name__}, expected a RecordSource")
    return source
