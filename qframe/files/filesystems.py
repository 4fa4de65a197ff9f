"""Tells whether a folder lies on a network file system, where locks and memory maps of other machines may not be seen.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path

from qframe.files.disk import can_write, disk_errors

_MOUNTS = Path("/proc/self/mounts")
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|afs|ceph|glusterfs|lustre|gpfs|beegfs|pvfs2|orangefs|ocfs2|gfs2|9p|virtiofs|davfs|"
    r"fuse\.(sshfs|ceph.*|glusterfs|s3fs|gcsfuse|goofys|rclone|juicefs|davfs2?|mfs|moosefs|beegfs|lizardfs|weka.*|.*smb.*)|"
    r"weka.*|wekafs|juicefs|vboxsf|afpfs|webdav"
)
"""The types of file systems, as Linux names them, that several machines can mount at once."""


def network_type(path: Path) -> str | None:
    """Return the type of the network file system that `path` lies on, such as "nfs4"; None if it is a local one.

    The path need not exist. Where the system has no list of mounts, the answer is None.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    place = path.absolute()
    place = next((part for part in (place, *place.parents) if part.exists()), place).resolve()
    depth, kind = -1, ""
    for fields in map(str.split, lines):
        if len(fields) < 3:
            continue
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        # Of two that are mounted in one place, the later one covers the other.
        if place.is_relative_to(mounted) and len(mounted.parts) >= depth:
            depth, kind = len(mounted.parts), fields[2]
    return kind if _NETWORK.fullmatch(kind) else None


def local_folder(name: str) -> Path:
    """Return a folder of this user on a disk of this machine, for files that can be made again. It is created.

    It lies in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), or in the folder for temporary files if the former
    is on a network file system too, or cannot be written to.

    Args:
        name: The folder's name, within the folders of qframe.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qframe"
    if network_type(caches) is None:
        with contextlib.suppress(OSError):
            return _private(caches / name)
    folder = Path(tempfile.gettempdir()) / f"qframe-{os.getuid()}" / name
    with disk_errors(folder):
        return _private(folder)


def _private(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not can_write(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder
