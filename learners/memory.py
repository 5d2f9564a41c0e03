"""Memory that an update has freed stays with the process, as the next one asks for as much.

What networks hold between layers is a megabyte or more for several agents. The C library gives such
blocks back to the system when they are freed, and each page of them faults when it is touched anew:
with four agents that took a fifth of all time. Numbers do not depend on it.
"""

from __future__ import annotations

import ctypes

LARGEST = 32 << 20
"""Bytes of a block up to which it is kept."""
KEPT = 512 << 20
"""Bytes that are kept at most, beyond what is in use."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees; returns whether its C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
