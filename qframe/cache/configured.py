"""What a configuration says of the cache: its folder, the components that encode, and the entries it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qframe.cache.declared import DeclaredInputs
from qframe.cache.keys import Ingredients, PictureDigests
from qframe.cache.plan import CachePlan
from qframe.cache.store import Cache
from qframe.compose import Composition
from qframe.config.schema import Config
from qframe.files.digests import DigestStore, FileDigests
from qframe.interfaces import Record
from qframe.progress import SILENT, Progress


def cache_folder(config: Config) -> Path:
    """Return the folder of the cache: `cache.dir`, or by default a folder beside the runs, which share it.

    Keys depend on content alone, so that any runs can share a folder. Runs of one family share entries as well.
    """
    if config.cache.dir is not None:
        return Path(config.cache.dir).expanduser()
    return Path("runs") / "cache" if config.output is None else Path(config.output).expanduser().parent / "cache"


def made_by(
    composition: Composition,
    store: DigestStore | None = None,
    progress: Progress = SILENT,
    *,
    roles: Sequence[str] = ("encoder", "codec"),
) -> dict[str, Ingredients]:
    """Return the ingredients of components by role.

    Args:
        composition: The components.
        store: Keeps digests of files between runs; without it, all weights are read.
        progress: Is told how far reading has come.
        roles: Which components.
    """
    digests = FileDigests(store)
    found: dict[str, Ingredients] = {role: composition.ingredients(role, progress, digests) for role in roles}
    digests.save()
    return found


def configured_plan(
    composition: Composition,
    records: Sequence[Record],
    cache: Cache,
    *,
    unconditional: bool,
    progress: Progress = SILENT,
) -> CachePlan:
    """Return the plan of the entries that records need; its `read` was not called yet.

    Args:
        composition: The recipe and the components of the configuration.
        records: The records.
        cache: Keeps the digests of files between runs.
        unconditional: Whether examples have the empty prompt too, which only caption dropout needs.
        progress: Is told how far reading of weights has come.
    """
    makers = made_by(composition, cache, progress)
    inputs = DeclaredInputs(records, composition.recipe, unconditional=unconditional)
    return CachePlan(inputs, makers, PictureDigests(cache))
