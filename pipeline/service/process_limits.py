"""What a server's process may take of the machine, set once before its ports open.

Arrow inflates a compressed message before anybody can look at it, and Flight has no limit of its
own; with a bound on the address space such a message fails alone, and the server stays. Streams
hold threads, whose stacks count against that bound, so stacks are small.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import threading
from pathlib import Path

logger = logging.getLogger(__name__)
STACK_BYTES = 1 << 20
"""Of each thread: those of Python, and those that gRPC makes for streams."""
ARENAS = 8
"""Of the C library's allocator; by default it sets 64 MiB of addresses aside for every thread."""
STREAM_BYTES = 16 << 20
"""Addresses set aside for each stream: two stacks and buffers of the transport."""
SPARE_BYTES = 8 << 30
"""Addresses for files that are mapped, and for what libraries set aside and never touch."""
IDLE_BYTES = 64 << 20
"""Freed memory that the C library may keep for itself."""
_M_ARENA_MAX = -8
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_ATTRIBUTES_BYTES = 128
"""At least the size of a `pthread_attr_t`."""


def bound_process(max_streams: int) -> int | None:
    """Makes stacks small and bounds the address space; returns the bound, None if there is none.

    Args:
        max_streams: how many streams may be open.
    """
    threading.stack_size(STACK_BYTES)
    _bound_native()
    used = _address_space()
    if used is None:
        return None
    wanted = used + memory_bytes() + max_streams * STREAM_BYTES + SPARE_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [one for one in (wanted, soft, hard) if one != resource.RLIM_INFINITY]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    except (ValueError, OSError) as error:
        logger.warning("the address space could not be bounded", extra={"why": str(error)})
        return None
    return min(bounds)


def memory_bytes() -> int:
    """Returns the memory of this machine, or what its control group leaves of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = _CGROUP.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(group)) if group.isdigit() else machine


class _Allocated(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def return_memory() -> None:
    """Hands freed memory back to the system, if it is much; call it when a lot was freed.

    Puts come in small pieces and go all at once when they are sealed; what the C library keeps of
    that would look like a leak, and is missing elsewhere.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return
    library.mallinfo2.restype = _Allocated
    if library.mallinfo2().fordblks > IDLE_BYTES:
        library.malloc_trim(0)


def _address_space() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _bound_native() -> None:
    """Sets what the C library does for threads that are not Python's, where it is glibc."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "pthread_setattr_default_np") or not hasattr(library, "mallopt"):
        return
    library.mallopt(_M_ARENA_MAX, ARENAS)
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    if library.pthread_attr_init(attributes) == 0:
        library.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
        library.pthread_setattr_default_np(attributes)
        library.pthread_attr_destroy(attributes)
