"""Decides where runs keep what several of them share. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from qframe.config.schema import Config


def cache_folder(config: Config) -> Path:
    """Return the cache's folder: `cache.dir` if it is set, else the folder `cache` beside the run's output folder.

    Any runs can share one cache folder, because the keys of entries depend on content alone. Runs of one family that
    train on the same pictures and prompts share the entries too.
    """
    if config.cache.dir is not None:
        return Path(config.cache.dir).expanduser()
    return Path("runs") / "cache" if config.output is None else Path(config.output).expanduser().parent / "cache"


def quantised_folder(config: Config) -> Path:
    """Return the folder of the quantised weights of a configuration."""
    return quantised_inside(cache_folder(config))


def quantised_inside(cache: Path) -> Path:
    """Return the folder of quantised weights in a cache's folder."""
    return cache / "quantised"
