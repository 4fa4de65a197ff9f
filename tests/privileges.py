"""Takes from root, who runs the tests in containers, the right to read and write everywhere."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_EVERYWHERE = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """A context in which this thread, and threads that it starts, obey the modes of files as an ordinary user does.

    `os.access` is asked with the same rights, because it would go by what root may do.
    """
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(_VERSION, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    before, access = sets[0].effective, os.access
    sets[0].effective = before & ~_EVERYWHERE
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")
    os.access = lambda *given, **named: access(*given, **{**named, "effective_ids": True})
    try:
        yield
    finally:
        os.access = access
        sets[0].effective = before
        if libc.capset(ctypes.byref(header), sets):
            raise OSError(ctypes.get_errno(), "capset")


def read_only(folder: Path) -> Path:
    """Take the right to write from a folder and everything in it, and return it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder
