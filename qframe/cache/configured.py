"""What a configuration wants cached, where it looks for it, and what makes it."""

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
    """Where encoded examples are kept: cache.dir, else beside the runs, shared by all of them.

    Keys are made of content, so that any runs can share a folder; runs of one family share its entries.
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
    """The ingredients of components, by role. Weights are read, unless the store remembers their digests."""
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
    """The entries that a configuration's records need, not read yet. `cache` remembers the files' digests."""
    makers = made_by(composition, cache, progress)
    inputs = DeclaredInputs(records, composition.recipe, unconditional=unconditional)
    return CachePlan(inputs, makers, PictureDigests(cache))
