"""Erased episodes leave the caches of this machine, too, when their store is opened next.

`penstock erase` hides episodes at once, and `penstock gc --erase` rewrites the files that held
them. A cache remembers from which file it packed each block. Where other files stand in for some of
these, the cache is written anew without those blocks and the old file is unlinked; the blocks are
packed again from what the store holds now, once a stream wants them. A process that maps the old
file keeps it until it ends, and its rows stay as they were.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.store import layout
from pipeline.stream.cache_index import (
    FRESH,
    INDEX,
    PICTURES,
    RECORDS,
    CachedBlock,
    damaged,
    disk_errors,
    locked,
    picture_file,
    read_index,
    remove_records,
    sync_folder,
    write_index,
)
from schemas.errors import DamagedCacheError, DiskFullError


def forget_erased(caches: Path, rewritten: Collection[str]) -> int:
    """Takes the blocks that held erased episodes out of all caches of a store.

    Args:
        caches: their folder.
        rewritten: keys of the store's files that others stand in for.

    Returns:
        How many blocks were taken out.

    Raises:
        UsageError: if a cache with such blocks cannot be written to.
    """
    if not rewritten or not caches.is_dir():
        return 0
    return sum(_forget(folder, rewritten) for folder in sorted(caches.iterdir()))


def _forget(folder: Path, rewritten: Collection[str]) -> int:
    if folder.is_symlink() or not (folder / INDEX).exists():
        return 0
    with contextlib.suppress(DamagedCacheError):  # who opens it says so
        if not _stale(read_index(folder)[0], rewritten):
            return 0
        with locked(folder):
            known, document = read_index(folder)
            stale = _stale(known, rewritten)
            kept = {name: block for name, block in known.items() if name not in stale}
            if stale:
                erased = int(document.get("erased", 0)) + len(stale)
                _rewrite(folder, kept, document["record"], erased)
            return len(stale)
    return 0


def _stale(blocks: Mapping[str, CachedBlock], rewritten: Collection[str]) -> set[str]:
    return {
        name
        for name, block in blocks.items()
        if any(key in rewritten for key in ([block.file] if block.file else _files(name)))
    }


def _files(block: str) -> list[str]:
    """Keys that the file of a block may have had, where a cache of format 1 does not say it."""
    return [layout.shard_files(block), layout.tail(block), layout.link(block)]


def _rewrite(
    folder: Path, kept: Mapping[str, CachedBlock], record: Mapping[str, int], erased: int
) -> None:
    """Puts a file of some blocks in the stead of one that held more.

    In between there is no index, and so no cache: who is killed then leaves nothing but a file
    that nobody reads and the next one who fills removes.
    """
    try:
        with disk_errors(folder):
            moved = _copied(folder, kept, int(record["size"]))
            (folder / INDEX).unlink()
            staying = {picture_file(folder, name) for name in kept}
            for file in set((folder / PICTURES).glob("*")) - staying:
                file.unlink()
            (folder / FRESH).replace(folder / RECORDS)
            sync_folder(folder)
            write_index(folder, record, moved, erased)
    except DiskFullError:  # without room for both, all of it is packed again
        remove_records(folder)


def _copied(folder: Path, kept: Mapping[str, CachedBlock], size: int) -> dict[str, CachedBlock]:
    """Copies some blocks one after the other; returns where they lie then."""
    moved, start = {}, 0
    with (folder / RECORDS).open("rb") as old, (folder / FRESH).open("wb") as fresh:
        for name, block in sorted(kept.items(), key=lambda item: item[1].start):
            at, left = block.start * size, block.rows * size
            while left:
                sent = os.sendfile(fresh.fileno(), old.fileno(), at, left)
                if not sent:
                    raise damaged(folder, f"the block {name}", "an end before it")
                at, left = at + sent, left - sent
            moved[name] = replace(block, start=start)
            start += block.rows
        os.fsync(fresh.fileno())
    return moved
