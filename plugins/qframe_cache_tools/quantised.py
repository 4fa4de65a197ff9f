"""Lists and prunes the quantised weights that are stored in a cache's folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from qframe.compose import compose
from qframe.compose.stored_weights import StoredFolder, stored_folders
from qframe.config.folders import quantised_inside
from qframe.config.schema import Config
from qframe.files.digests import DigestStore, FileDigests
from qframe.files.storage import verify_folder
from qframe.progress import Progress


def stored_weights(cache: Path) -> list[StoredFolder]:
    """Return the quantised weights in a cache's folder, the oldest first."""
    return stored_folders(quantised_inside(cache))


def needed_weights(config: Config, store: DigestStore, progress: Progress) -> set[str]:
    """Return the keys of the quantised weights that runs of a configuration use.

    Args:
        config: The configuration.
        store: Keeps digests of files between runs.
        progress: Is told how far the reading of large files is.
    """
    composition, digests = compose(config), FileDigests(store)
    found = [composition.quantised_weights(role, progress, digests) for role in composition.quantisers]
    return {place.key for place in found if place is not None}


def unwanted_weights(cache: Path, *, keep: Collection[str] | None, written_before: float | None) -> list[StoredFolder]:
    """Return the quantised weights that a pruning takes out; nothing is changed.

    Args:
        cache: The cache's folder.
        keep: The keys that stay; None lets all go that are old enough.
        written_before: Only weights that were written before this time, in seconds since 1970, go; None lets all go
            that `keep` does not have.
    """
    return [
        one
        for one in stored_weights(cache)
        if (keep is None or one.key not in keep) and (written_before is None or one.written < written_before)
    ]


def damaged_weights(cache: Path) -> list[tuple[StoredFolder, list[str]]]:
    """Read all quantised weights in a cache's folder, and return the damaged ones with what is wrong with each."""
    found = [(one, verify_folder(one.folder)) for one in stored_weights(cache)]
    return [(one, problems) for one, problems in found if problems]


def remove_weights(folders: Sequence[StoredFolder]) -> list[StoredFolder]:
    """Delete folders of quantised weights, and return those that stay because a process stores or checks them."""
    return [one for one in folders if not one.remove()]
