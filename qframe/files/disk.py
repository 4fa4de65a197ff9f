"""Words for what an operating system reports about a disk: what is wrong with which place, and what to do about it.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from qframe.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_INTACT = "Nothing half written was left, and what was there is intact."
_ADVICE = {
    errno.EROFS: "It is mounted read-only: write to another place, or mount it so that it can be written to.",
    errno.EACCES: "Write to another place, or let this user write there (ls -ld shows whose it is).",
    errno.EPERM: "Write to another place, or let this user change it (ls -ld shows whose it is).",
    errno.EIO: "The disk or its driver reports a fault: look at the system's log (dmesg), and use another disk.",
    errno.ENOTDIR: "Something in this path is a file where a folder is needed: name another place.",
    errno.EISDIR: "It is a folder where a file is needed: name a file in it.",
    errno.EEXIST: "Something else has this name already: move it away, or name another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EINVAL: "This file system does not take this name or this kind of access: name another place.",
    errno.ELOOP: "It is a link that leads back to itself: name another place.",
    errno.EMFILE: "This process has too many files open: raise the limit (ulimit -n 65536).",
    errno.ENFILE: "The system has too many files open: end other programs.",
    errno.ETXTBSY: "Another program is running this file: end it.",
    errno.EBUSY: "Another program is using it: end that program.",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO),
        "The disk or the network file system is not connected (any more): connect it, or use another place.",
    ),
}


@contextlib.contextmanager
def disk_errors(path: Path, setting: str | None = None) -> Iterator[None]:
    """A context that turns errors of a disk into a ResourceError that names `path` and says what to do.

    These are errors that have a reason outside the program: a full disk, a place that cannot be written to, a fault of
    the disk. Other errors, such as a file that does not exist, pass unchanged.

    Args:
        path: The file or folder that is written inside.
        setting: The option or key with which the user can name another place, such as "cache.dir".
    """
    try:
        yield
    except OSError as error:
        if (found := disk_error(error, path, setting)) is None:
            raise
        raise found from error
    except Exception as error:
        safetensors = sys.modules.get("safetensors")  # if it was not imported, the error is not one of safetensors
        if safetensors is None or not isinstance(error, safetensors.SafetensorError):
            raise
        # safetensors reports every failed write as its own error, with the number in the text.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or (found := disk_error(OSError(int(number[1]), str(error)), path, setting)) is None:
            raise
        raise found from error


def disk_error(error: OSError, path: Path | None = None, setting: str | None = None) -> ResourceError | None:
    """Return the error of a disk as a ResourceError for people; None if it is an error of another kind.

    Args:
        error: The error of the operating system.
        path: The file or folder that was to be written. None names the path that the error itself names; an error that
            names none is then of another kind, unless the disk is full.
        setting: The option or key with which the user can name another place.
    """
    named = path if path is not None or error.filename is None else Path(os.fsdecode(error.filename))
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        what = "The disk" if named is None else f"{named}: cannot be written, the disk"
        return ResourceError(
            f"{what} is full or a quota is used up ({reason})",
            f"Free some space, or write to another disk. {_INTACT}",
        )
    if error.errno not in _ADVICE or named is None:
        return None
    what = "cannot be used" if path is None else "cannot be written"
    advice = _ADVICE[error.errno]
    if setting is not None:
        advice = advice.replace("another place", f"another place ({setting})", 1)
    return ResourceError(f"{named}: {what} ({reason})", advice)


def make_folder(folder: Path, setting: str | None = None) -> Path:
    """Make a folder and those around it where there is none, and return it.

    Args:
        folder: The folder.
        setting: The option or key with which the user can name another place.

    Raises:
        ResourceError: It cannot be made; the message says why.
    """
    with disk_errors(folder, setting):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def can_write(folder: Path) -> bool:
    """Whether this process may make files in a folder that exists."""
    return os.access(folder, os.W_OK | os.X_OK)
