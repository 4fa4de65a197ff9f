"""Remembers which published folders were found sound, so that a process reads each of them at most once to know it.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from qframe.files.storage import verify_folder

_Stamps = tuple[tuple[str, int, int, int, int], ...]


class SoundFolders:
    """The published folders that this process has published itself, or has read and found sound.

    A folder counts as sound as long as none of its files has another size, time or inode than when that was found.
    """

    def __init__(self) -> None:
        """Begin without any folder."""
        self._stamps: dict[Path, _Stamps] = {}

    def add(self, folder: Path) -> None:
        """Remember a folder that this process has just published. Its files were hashed while they were written."""
        self._stamps[folder.absolute()] = _stamps(folder)

    def problems(self, folder: Path) -> list[str]:
        """Return what `verify_folder` returns. A folder that is known to be sound and has not changed is not read."""
        known = self._stamps.get(folder.absolute())
        stamps = _stamps(folder)
        if known is not None and known == stamps:
            return []
        found = verify_folder(folder)
        if not found:
            self._stamps[folder.absolute()] = stamps  # taken before the files were read
        return found


def _stamps(folder: Path) -> _Stamps:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            about = path.stat()
        except OSError:  # it was deleted meanwhile, and the folder is no longer what it was
            continue
        found.append((path.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino))
    return tuple(found)
