"""What a configuration says of the cache: its folder, and the components that encode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qframe.cache.keys import Ingredients
from qframe.compose import Composition
from qframe.config.schema import Config
from qframe.files.digests import DigestStore, FileDigests
from qframe.progress import SILENT, Progress


def cache_folder(config: Config) -> Path:
    """Return the cache's folder: `cache.dir` if it is set, else the folder `cache` beside the run's output folder.

    Any runs can share one cache folder, because the keys of entries depend on content alone. Runs of one family that
    train on the same pictures and prompts share the entries too.
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
    """Return the ingredients of each role's component: by name, everything that the component's output depends on.

    Args:
        composition: The components of the model.
        store: Keeps digests of files between runs. If it is None, the weights of all these components are read and
            hashed.
        progress: Is told how far the hashing of weights has come.
        roles: The roles whose components are asked, for example "encoder".
    """
    digests = FileDigests(store)
    found: dict[str, Ingredients] = {role: composition.ingredients(role, progress, digests) for role in roles}
    digests.save()
    return found
