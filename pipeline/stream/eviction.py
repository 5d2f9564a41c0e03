"""Which caches lie on this machine, and deleting those that nobody maps.

A cache is a copy of what its store holds, so deleting one costs the time to make it again and
nothing else. The process that maps its file holds a shared lock on it (`cache.PackedCache.open`);
what is locked so, or is being filled, stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.stream.cache_index import LOCK, PICTURES, RECORDS, read_index, remove_records
from schemas.errors import DamagedCacheError


@dataclass(frozen=True)
class Cached:
    """One cache on this machine."""

    folder: Path
    size: int
    """Bytes of its records, and of pictures that are encoded beside them."""
    used: float
    """When it was last filled or opened, seconds since 1970."""
    in_use: bool
    """Whether a process maps or fills it."""
    erased: int = 0
    """Blocks that were taken out of it so far because they held erased episodes."""

    @property
    def store(self) -> str:
        """Id of the store."""
        return self.folder.parent.name


def caches(root: Path) -> list[Cached]:
    """Returns the caches below a folder, the one used last first."""
    found = []
    for records in root.glob(f"*/*/{RECORDS}"):
        folder = records.parent
        if folder.is_symlink() or folder.parent.is_symlink() or records.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):
            used = max(_changed(folder / LOCK), records.stat().st_mtime)
            with _alone(folder) as alone:
                size = sum(one.stat().st_size for one in (records, *(folder / PICTURES).glob("*")))
                found.append(Cached(folder, size, used, not alone, _erased(folder)))
    return sorted(found, key=lambda cached: -cached.used)


def evict(
    root: Path, *, older_than: float | None = None, max_size: int | None = None
) -> tuple[list[Cached], list[Cached]]:
    """Deletes caches that no process uses; with neither limit, all of them.

    Args:
        root: the folder of all caches.
        older_than: seconds; deletes those that were not used for longer.
        max_size: bytes; deletes those used least recently until the rest is no larger.

    Returns:
        Those that were deleted, and those that should have been, but are in use.
    """
    known = caches(root)
    everything = older_than is None and max_size is None
    left = sum(cached.size for cached in known)
    deleted, busy = [], []
    for cached in reversed(known):
        is_old = older_than is not None and time.time() - cached.used > older_than
        is_too_much = max_size is not None and left > max_size
        if not (everything or is_old or is_too_much):
            continue
        if _delete(cached.folder):
            left -= cached.size
            deleted.append(cached)
        else:
            busy.append(cached)
    return deleted, busy


def _delete(folder: Path) -> bool:
    """Deletes a cache unless it is used. Its lock stays: another process may be waiting for it."""
    with _alone(folder) as alone:
        if alone:
            remove_records(folder)
        return alone


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds a cache so that nobody can fill or map it; yields whether that could be had."""
    with contextlib.ExitStack() as held:
        try:
            for name in (LOCK, RECORDS):
                file = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                held.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _erased(folder: Path) -> int:
    try:
        return int(read_index(folder)[1].get("erased", 0))
    except DamagedCacheError:
        return 0
