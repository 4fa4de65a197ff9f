"""Builds the data source that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from qframe.config.schema import Config, DataConfig, DataSetConfig
from qframe.data.mixture import Member, MixtureSource
from qframe.errors import ConfigError, DataError, PluginError
from qframe.interfaces import Record, RecordSource
from qframe.pictures.picture import Picture
from qframe.plugins.registry import Registry

_HINT = "This is a defect of the plugin; see qframe.interfaces.RecordSource."


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
    return checked_source(source, f"source {component.name!r} (plugin {registry.plugin_of(component)!r})")


def checked_source(source: RecordSource, about: str) -> RecordSource:
    """Check from now on what a source returns: a sequence, whose first record has values of the right types.

    Further records are not read, because a source may read them only when they are asked for.

    Args:
        source: The source.
        about: Names the source and its plugin in messages.
    """

    def watched(method: str) -> Callable[[], Sequence[Record]]:
        called = getattr(source, method)

        def records() -> Sequence[Record]:
            found = called()
            if not isinstance(found, Sequence):
                raise PluginError(f"{about}: {method} returned a {type(found).__name__}, expected a sequence", _HINT)
            if len(found):
                _check_record(found[0], f"{about}: {method}")
            return found

        return records

    for method in ("records", "validation"):
        object.__setattr__(source, method, watched(method))
    return source


def _check_record(record: object, about: str) -> None:
    """Raise PluginError if a record, or a field of it, has another type than `Record` says."""
    if not isinstance(record, Record):
        raise PluginError(f"{about} gave a {type(record).__name__} as a record", _HINT)
    kinds = {"id": str, "origin": str, "prompt": str, "target": Picture, "references": tuple}
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind):
            raise PluginError(f"{about}: {name} is a {type(value).__name__}, expected a {kind.__name__}", _HINT)
    if not all(isinstance(one, Picture) for one in record.references):
        raise PluginError(f"{about}: references has a value that is no Picture", _HINT)


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
