"""Group commit: whoever appends waits for one sync that serves all who wait.

One thread takes everything that is queued, writes it with as few calls as the kernel allows, syncs
once, and only then tells those who wait. Records are durable in the order in which they were
appended, so whoever waits for one waits for all before it.

A disk without room refuses: what was written of the group is taken back, all that is queued fails
with `DiskFullError`, and the log goes on when there is room. Any other failure of a write, and any
failure of a sync, is final: after a sync that failed nobody knows what the disk holds, and a second
sync that succeeds says nothing about it. From then on nothing is acknowledged, and the process must
end and recover.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.service.pending import Pending
from pipeline.service.records import HEADER_BYTES, MAX_PAYLOAD, Bytes, Kind, header, padding
from pipeline.service.segments import Place, Segments
from schemas.errors import (
    BusyError,
    DiskFullError,
    LogFailedError,
    TooLargeError,
)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
GROUP_BYTES = 16 << 20
"""What one group holds at most, unless a single record is larger."""
QUEUE_BYTES = 256 << 20
"""What may wait to be written."""
_SEGMENT = Kind.SEGMENT


@dataclass(frozen=True)
class Written:
    """One group, for metrics."""

    records: int
    bytes: int
    sync_seconds: float


class GroupCommit:
    """The one writer of a log's segments."""

    def __init__(
        self,
        segments: Segments,
        first: int,
        *,
        on_refused: Callable[[], None] = lambda: None,
        on_failed: Callable[[LogFailedError], None] = lambda _: None,
        on_written: Callable[[Written], None] = lambda _: None,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write.

        Args:
            segments: where.
            first: offset of the first record to come.
            on_refused: called when a full disk refused records, before those who wait for them
                are told.
            on_failed: called once, when the log has failed.
            on_written: called after each group that was written.
            on_settled: called after each group, once all who wait for one of its records were
                told, whatever they were told.
        """
        self._segments = segments
        self._on_refused = on_refused
        self._on_failed = on_failed
        self._on_written = on_written
        self._on_settled = on_settled
        self._changed = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._next = self._durable = first
        self._failure: LogFailedError | None = None
        self._is_closing = False
        self._is_idle = False
        """True while the thread waits for records."""
        self.refusals = 0
        """How often a full disk refused records."""
        self._thread = threading.Thread(target=self._run, name="penstock-wal", daemon=True)
        self._thread.start()

    @property
    def durable(self) -> int:
        """Records of smaller offsets are durable."""
        return self._durable

    @property
    def failure(self) -> LogFailedError | None:
        """Why nothing is written any more."""
        return self._failure

    def append(self, pending: Pending, *, refusals: int) -> Pending:
        """Queues a record; it has its offset when this returns.

        Args:
            pending: the record.
            refusals: how many refusals the caller knows of. A record may make no sense without
                one that was refused a moment ago.

        Raises:
            LogFailedError: if the log failed, or is closed.
            DiskFullError: if records were refused that the caller does not know of yet.
            BusyError: if too much waits to be written.
            TooLargeError: if the record is longer than any may be.
        """
        if pending.length > MAX_PAYLOAD:
            raise TooLargeError(
                f"Expected a record of at most {MAX_PAYLOAD} bytes, came {pending.length}; send "
                f"smaller puts."
            )
        with self._changed:
            if self._failure is not None:
                raise LogFailedError(self._failure.message, where=self._failure.where)
            if self._is_closing:
                raise LogFailedError("Expected an open log, this one is closed.")
            if refusals != self.refusals:
                raise _full(str(self._segments.folder))
            if self._queued_bytes > QUEUE_BYTES:
                raise BusyError(
                    f"Expected at most {QUEUE_BYTES} bytes to wait for the disk, more do; send "
                    f"more slowly.",
                    retry_after=0.5,
                )
            pending.offset = self._next
            self._next += 1
            self._queue.append(pending)
            self._queued_bytes += pending.size
            if self._is_idle:
                self._is_idle = False
                self._changed.notify()
        return pending

    def close(self) -> None:
        """Writes what is queued and ends; the folder stays held."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while group := self._take():
            try:
                self._commit(group)
            except Exception as error:  # whatever it is, nobody may be told that all is well
                self._fail(group, error)
                return

    def _take(self) -> list[Pending]:
        """Returns what to write next, a segment at most; nothing when the log is closed."""
        with self._changed:
            while not self._queue and not self._is_closing:
                self._is_idle = True
                self._changed.wait()
            self._is_idle = False
            group: list[Pending] = []
            size = 0
            while self._queue:
                following = self._queue[0]
                size += following.size
                if group and (size > GROUP_BYTES or following.kind is _SEGMENT):
                    break
                group.append(self._queue.popleft())
                self._queued_bytes -= following.size
            return group

    def _commit(self, group: list[Pending]) -> None:
        if not self._segments.is_begun and group[0].kind is not _SEGMENT:
            self._refuse(group)  # the segment that they are for was refused just now
            return
        try:
            places = self._write(group)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._segments.undo()
            self._refuse(group)
            return
        begun = time.perf_counter()
        self._segments.sync()
        seconds = time.perf_counter() - begun
        self._durable = group[-1].offset + 1
        for pending, place in zip(group, places, strict=True):
            pending.place = place
        for pending in group:
            pending.settle(None)
        self._on_settled()
        written = sum([pending.size for pending in group])
        self._on_written(Written(len(group), written, seconds))

    def _write(self, group: list[Pending]) -> list[Place]:
        buffers: list[Bytes] = []
        starts = []
        size = 0
        for one in group:
            head = header(one.kind, one.length, one.offset, self._durable, one.payload_crc)
            buffers += (head, *one.parts)
            if one.length + HEADER_BYTES != one.size:
                buffers.append(padding(one.length))
            starts.append(size + HEADER_BYTES)
            size += one.size
        if group[0].kind is _SEGMENT:
            self._segments.begin(group[0].offset)
        segment, begun = self._segments.write(buffers)
        return [
            Place(segment, begun + start, one.length)
            for start, one in zip(starts, group, strict=True)
        ]

    def _refuse(self, group: list[Pending]) -> None:
        with self._changed:
            refused = [*group, *self._queue]
            self._queue.clear()
            self._queued_bytes = 0
            self._next = group[0].offset
            self.refusals += 1
            for pending in refused:
                pending.is_refused = True
        self._on_refused()
        error = _full(str(self._segments.folder))
        for pending in refused:
            pending.settle(error)
        self._on_settled()

    def _fail(self, group: list[Pending], error: Exception) -> None:
        failure = LogFailedError(
            f"Could not write the log: {error}; nothing is acknowledged any more: check the disk, "
            f"then start the service again.",
            where=str(self._segments.folder),
        )
        with self._changed:
            self._failure = failure
            waiting = [*group, *self._queue]
            self._queue.clear()
        for pending in waiting:
            pending.settle(failure)
        self._on_settled()
        self._on_failed(failure)


def _full(where: str) -> DiskFullError:
    return DiskFullError(
        "Could not write the log: no space left on the disk; free some space, then begin a new "
        "epoch and send the open episodes again.",
        where=where,
    )
