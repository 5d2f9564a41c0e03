"""The log's folder: segment files, appended to, read back whole, deleted from the front.

A segment is named by the offset of its first record. It is complete and durable before the next
one is made, so only the last can end in a torn record. A segment's name is durable before anything
in it is acknowledged. Segments are deleted oldest first, each deletion durable before the next: at
no moment may a crash leave a hole.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.service.records import (
    ALIGNMENT,
    HEADER_BYTES,
    Bytes,
    Record,
    durable_after,
    read_records,
    record_at,
)
from pipeline.store.disk import Disk
from schemas.errors import DamagedLogError, LockHeldError

_NAME = re.compile(r"\A(\d{16})\.wal\Z")
_MOST_BUFFERS = 1024
"""What the kernel takes in one call."""


class Place(NamedTuple):
    """Where a record's payload is."""

    segment: int
    """Offset of the segment's first record."""
    position: int
    length: int


@dataclass
class _File:
    """The segment that is written."""

    first: int
    handle: int
    size: int = 0


class Segments:
    """The segments of one log. One process has a folder at a time."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        """Takes a folder, made if it is not there.

        Raises:
            LockHeldError: if another process has it.
        """
        self.folder = folder
        self._disk = disk or Disk()
        self._make_folder()
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._folder)
            raise LockHeldError(
                "Expected a log that no other process writes, another one does; give each "
                "service a folder of its own (--wal).",
                where=str(folder),
            ) from None
        self._current: _File | None = None
        self._sizes = {
            int(found[1]): (folder / name).stat().st_size
            for name in os.listdir(folder)  # noqa: PTH208
            if (found := _NAME.match(name))
        }

    @property
    def size(self) -> int:
        """What all segments take on the disk."""
        return sum(self._sizes.values())

    @property
    def firsts(self) -> list[int]:
        """Offsets of the segments' first records, ascending."""
        return sorted(self._sizes)

    # -- reading -------------------------------------------------------------------------------

    def recover(self) -> Iterator[tuple[int, Record]]:
        """Yields all records with the first offsets of their segments, and settles them.

        What was written but never synced may be gone after a later crash: the last segment is
        synced before its records are yielded, its torn end cut off.

        Raises:
            DamagedLogError: if anything but the end of the last segment is not whole.
        """
        for first, following in itertools.zip_longest(self.firsts, self.firsts[1:]):
            data = self._path(first).read_bytes()
            records = read_records(data, first)
            if following is None:
                records = iter(self._settle(first, data))
            reached = first
            for record in records:
                reached = record.offset + 1
                yield first, record
            if following is not None and reached != following:
                raise DamagedLogError(
                    f"Expected the log's records up to {following}, came none whole from "
                    f"{reached} on; restore the segment from a copy, or start with an empty "
                    f"folder (episodes that are not sealed are lost then).",
                    where=str(self._path(first)),
                )

    def _settle(self, first: int, data: bytes) -> list[Record]:
        """Cuts a torn end off the last segment and makes the rest durable; returns its records."""
        records = list(read_records(data, first))
        reached, end = (records[-1].offset + 1, records[-1].end) if records else (first, 0)
        if durable_after(data, end) > reached:
            raise DamagedLogError(
                f"Expected the log's record {reached}, which was acknowledged, came a damaged one; "
                f"restore the segment from a copy, or start with an empty folder (episodes that "
                f"are not sealed are lost then).",
                where=str(self._path(first)),
            )
        if not end:
            self._disk.unlink(self._path(first))
            del self._sizes[first]
        else:
            handle = os.open(self._path(first), os.O_WRONLY)
            try:
                if end != len(data):
                    os.ftruncate(handle, end)
                os.fsync(handle)
            finally:
                os.close(handle)
            self._sizes[first] = end
        self._disk.sync_dir(self.folder)
        return records

    def read(self, place: Place) -> bytes:
        """Returns a record's payload.

        Raises:
            DamagedLogError: if it is not whole.
        """
        try:
            with self._path(place.segment).open("rb") as file:
                file.seek(place.position - HEADER_BYTES)
                data = file.read(HEADER_BYTES + place.length + ALIGNMENT)
        except OSError as error:
            raise DamagedLogError(
                f"Expected the log's segment to be readable, it is not ({error}); check the disk, "
                f"then start the service again.",
                where=str(self._path(place.segment)),
            ) from error
        record = record_at(data, 0)
        if record is None or len(record.payload) != place.length:
            raise DamagedLogError(
                f"Expected a whole record at byte {place.position}, came a damaged one; check the "
                f"disk, then start the service again.",
                where=str(self._path(place.segment)),
            )
        return bytes(record.payload)

    # -- writing -------------------------------------------------------------------------------

    @property
    def is_begun(self) -> bool:
        """True if there is a segment to write to."""
        return self._current is not None

    def begin(self, first: int) -> None:
        """Begins a segment; its name becomes durable with the next `sync`.

        The segment before it must be synced.
        """
        path = self._path(first)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self._current is not None:
            os.close(self._current.handle)
        self._current = _File(first, handle)
        self._sizes[first] = 0

    def write(self, buffers: Sequence[Bytes]) -> tuple[int, int]:
        """Appends bytes to the segment; returns its first offset and where they begin."""
        assert self._current is not None
        file, begun = self._current, self._current.size
        waiting = deque(view for one in buffers if (view := memoryview(one)).nbytes)
        while waiting:
            written = os.writev(file.handle, list(itertools.islice(waiting, _MOST_BUFFERS)))
            file.size += written
            while waiting and written >= waiting[0].nbytes:
                written -= waiting.popleft().nbytes
            if waiting and written:
                waiting[0] = waiting[0].cast("B")[written:]
        return file.first, begun

    def sync(self) -> None:
        """Makes everything written durable."""
        assert self._current is not None
        os.fdatasync(self._current.handle)
        if not self._sizes[self._current.first]:
            self._disk.sync_dir(self.folder)
        self._sizes[self._current.first] = self._current.size

    def undo(self) -> bool:
        """Takes back what was written since the last sync, durably.

        Returns:
            False if that was the begin of the segment: it is gone, another must be begun.
        """
        assert self._current is not None
        file, kept = self._current, self._sizes[self._current.first]
        if kept:
            os.ftruncate(file.handle, kept)
            os.fsync(file.handle)
            os.lseek(file.handle, kept, os.SEEK_SET)
            file.size = kept
            return True
        self._current = None
        del self._sizes[file.first]
        os.close(file.handle)
        self._disk.unlink(self._path(file.first))
        self._disk.sync_dir(self.folder)
        return False

    def drop_before(self, offset: int) -> int:
        """Deletes the segments all of whose records are below an offset; returns their bytes."""
        freed = 0
        for first, following in itertools.pairwise(self.firsts):
            if following > offset:
                break
            self._disk.unlink(self._path(first))
            self._disk.sync_dir(self.folder)
            freed += self._sizes.pop(first)
        return freed

    def close(self) -> None:
        """Lets go of the folder."""
        if self._current is not None:
            os.close(self._current.handle)
            self._current = None
        os.close(self._folder)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:016d}.wal"

    def _make_folder(self) -> None:
        missing = []
        at = self.folder
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        # One that is there may have been made a moment ago by a process that died.
        for path in [*reversed(missing), *([] if missing else [self.folder])]:
            self._disk.mkdir(path)
            if os.access(path.parent, os.R_OK):
                self._disk.sync_dir(path.parent)
