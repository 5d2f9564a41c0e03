"""What a packed cache holds: the document beside its records, replaced whole or not at all.

Only what it names exists for readers. One writer at a time holds the lock, which the kernel frees
when its process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.errors import DamagedCacheError, DiskFullError, UsageError

FORMAT = 2
LOCK = "lock"  # who fills holds it; its time of change is that of the last use
RECORDS = "rows.bin"
INDEX = "index.json"
FRESH = "rows.new"  # the records that stay of a file that is written anew
_NO_FOLDER = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOLCK),
    *(errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG),
)
PICTURES = "pictures"  # folder of what stays encoded, a file per block


@dataclass(frozen=True)
class CachedBlock:
    """Where one block of the store lies in the cache."""

    start: int
    """First row."""
    rows: int
    crc32c: int
    file: str = ""
    """Key of the store's file that it was packed from; empty in caches of format 1."""


def read_index(folder: Path) -> tuple[dict[str, CachedBlock], dict[str, Any]]:
    """Returns the blocks of a cache by name, and all that its index says; nothing without one.

    Raises:
        DamagedCacheError: if it cannot be read.
    """
    with disk_errors(folder):
        try:
            text = (folder / INDEX).read_text()
        except FileNotFoundError:
            return {}, {}
    try:
        document = json.loads(text)
        return {name: CachedBlock(*it) for name, it in document["blocks"].items()}, document
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, "an index that can be read", "something else") from error


def write_index(
    folder: Path,
    record: Mapping[str, Any],
    blocks: Mapping[str, CachedBlock],
    erased: int = 0,
) -> None:
    """Replaces the index; what it names is on disk already.

    Args:
        folder: of the cache.
        record: the record's layout.
        blocks: by name.
        erased: blocks that were taken out so far because they held erased episodes.
    """
    document = {
        "format": FORMAT,
        "record": record,
        "erased": erased,
        "blocks": {name: list(asdict(block).values()) for name, block in blocks.items()},
    }
    fresh = folder / "index.tmp"  # whoever writes holds the lock
    with fresh.open("w") as out:
        json.dump(document, out)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(folder / INDEX)
    sync_folder(folder)


def remove_records(folder: Path) -> None:
    """Deletes all of a cache but its lock, the index first; whoever maps its files keeps them."""
    for name in (INDEX, FRESH, RECORDS):
        (folder / name).unlink(missing_ok=True)
    if (folder / PICTURES).exists():
        shutil.rmtree(folder / PICTURES)


def picture_file(folder: Path, block: str) -> Path:
    """Returns where what stays encoded of a block is kept."""
    return folder / PICTURES / f"{block}.arrow"


def sync_folder(folder: Path) -> None:
    """Returns once the names in a folder are on disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until nobody else writes to a cache, which is made if absent."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with disk_errors(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def damaged(folder: Path, expected: str, came: str) -> DamagedCacheError:
    """Returns the error that a cache is not what its index says."""
    return DamagedCacheError(
        f"Expected {expected} in the stream cache, came {came}; delete the folder {folder} and "
        f"stream again, it is made anew from the store.",
        where=str(folder / RECORDS),
    )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what a disk may answer into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"Expected room for the stream cache in {folder}, came a full disk or quota; free "
                f"some (`penstock cache clear`), or set PENSTOCK_CACHE to a folder on a larger "
                f"disk.",
                where=str(folder),
            ) from error
        if error.errno in _NO_FOLDER:
            raise UsageError(
                f"Expected a folder for the stream cache that can be written and locked, came "
                f"{folder} ({error.strerror}); set PENSTOCK_CACHE to another one.",
                where=str(folder),
            ) from error
        raise
