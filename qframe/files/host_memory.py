"""Gives memory that was freed back to the system. Imports no torch."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Give freed memory of this process back to the system, where the C library is glibc; elsewhere do nothing.

    glibc keeps blocks of less than 32 MB in its heap when they are freed. Between blocks that live on it may keep many
    times their size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
