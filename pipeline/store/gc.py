"""Garbage collection in two phases, so that it can never race a commit.

`mark` lists the files that nothing reaches and that are older than the grace period, and writes
their names down. From then on no commit may refer to them (`Marks.refuse`). `sweep`, a grace period
later, looks again and deletes those named that still nothing reaches. Ages come from the store's
own clock, and whatever a live lease protects stays.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.store import layout
from pipeline.store.catalog import Catalog
from pipeline.store.files import unit_of
from pipeline.store.leases import leases
from pipeline.store.reach import reachable

GRACE = dt.timedelta(hours=24)


@dataclass(frozen=True)
class Collected:
    """What a collection did or would do."""

    marked: tuple[str, ...]
    """Files newly named for deletion."""
    deleted: tuple[str, ...]
    bytes: int
    """Of the deleted files; of the marked ones in a dry run."""
    shared_media: tuple[str, ...] = ()
    """Media files with frames of erased episodes that stay, as kept episodes use them too."""


def collect(catalog: Catalog, grace: dt.timedelta = GRACE, *, dry_run: bool = False) -> Collected:
    """Sweeps what earlier marks named, then marks what is new.

    Args:
        catalog: the store.
        grace: how old a file must be to be marked, and a mark to be swept.
        dry_run: delete and write nothing; tell what would be marked.
    """
    deleted, size = ((), 0) if dry_run else sweep(catalog, grace)
    doomed = _doomed(catalog, grace)
    if dry_run:
        return Collected(tuple(doomed), (), sum(doomed.values()))
    if doomed:
        mark(catalog, doomed)
        _unmark(catalog, reachable(catalog))  # a commit or tag may have come since the look
    return Collected(tuple(doomed), deleted, size)


def mark(catalog: Catalog, doomed: Iterable[str]) -> None:
    """Writes down the names of files to be deleted."""
    _write_mark(catalog, catalog.objects.now(), doomed)


def _write_mark(catalog: Catalog, marked_at: dt.datetime, names: Iterable[str]) -> None:
    data = json.dumps({"marked_at": marked_at.isoformat(), "files": sorted(names)}).encode()
    catalog.objects.put_if_absent(layout.mark(layout.new_id()), data)


def _unmark(catalog: Catalog, needed: set[str]) -> None:
    """Takes names of files that are needed after all off the marks.

    A commit or tag may have looked for marks just before one was written. Its files stay, and as
    long as they are marked no other may refer to them.
    """
    for found in catalog.marks.all():
        doomed = {key for key in found.files if unit_of(key) not in needed}
        if len(doomed) < len(found.files):
            if doomed:
                _write_mark(catalog, found.marked_at, doomed)
            catalog.objects.delete(found.key)


def sweep(catalog: Catalog, grace: dt.timedelta) -> tuple[tuple[str, ...], int]:
    """Deletes what a mark older than the grace period names and nothing reaches.

    The mark stays as long again, so that a commit that comes late finds the name of what is gone.
    """
    now = catalog.objects.now()
    ripe = [m for m in catalog.marks.all() if m.marked_at <= now - grace]
    if not ripe:
        return (), 0
    for found in ripe:  # a mark must not be lost in a crash that the deletions outlive
        catalog.objects.settle(found.key)
    safe_since = _protected_since(catalog)  # before the look: a lease may end with a commit
    needed = reachable(catalog)  # a fresh look: a tag or commit may have come since
    _unmark(catalog, needed)
    sizes = {
        entry.key: entry for folder in layout.DATA for entry in catalog.objects.entries(folder)
    }
    deleted, size = [], 0
    for key in sorted({key for found in ripe for key in found.files}):
        entry = sizes.get(key)
        if entry is None or unit_of(key) in needed:
            continue
        if safe_since is not None and entry.modified >= safe_since:
            continue
        catalog.objects.delete(key)
        deleted.append(key)
        size += entry.bytes
    for found in ripe:
        if found.marked_at <= now - 30 * max(grace, GRACE):
            catalog.objects.delete(found.key)  # no error if it was rewritten just now
    return tuple(deleted), size


def _doomed(catalog: Catalog, grace: dt.timedelta) -> dict[str, int]:
    """Returns the files to mark, with their sizes."""
    # Listed before the roots are read: a file that comes later is not seen at all.
    entries = [entry for folder in layout.DATA for entry in catalog.objects.entries(folder)]
    safe_since = _protected_since(catalog)
    needed = reachable(catalog)
    oldest = catalog.objects.now() - grace
    marked = {key for found in catalog.marks.all() for key in found.files}
    return {
        entry.key: entry.bytes
        for entry in entries
        if unit_of(entry.key) not in needed
        and entry.modified <= oldest
        and (safe_since is None or entry.modified < safe_since)
        and entry.key not in marked
    }


def _protected_since(catalog: Catalog) -> dt.datetime | None:
    """Files made since the oldest live lease began may belong to its job."""
    return min((lease.created_at for lease in leases(catalog.objects)), default=None)
