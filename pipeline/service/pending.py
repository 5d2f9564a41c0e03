"""A record on its way to the disk, and the wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pipeline.service.records import Bytes, Kind, checksum, record_bytes
from pipeline.service.segments import Place
from schemas.errors import OutOfTimeError, PenstockError

_LOCK = threading.Lock()
"""Guards who waits for any record: it is held for so short that one does for all of them."""


class Pending:
    """A record on its way to the disk. There is one for every put: it is kept small."""

    __slots__ = (
        "_calls",
        "_error",
        "_waiting",
        "is_refused",
        "is_settled",
        "kind",
        "length",
        "offset",
        "parts",
        "payload_crc",
        "place",
        "size",
    )

    def __init__(self, kind: Kind, parts: Sequence[Bytes]) -> None:
        self.kind = kind
        self.parts: Sequence[Bytes] = parts
        self.length = sum([memoryview(part).nbytes for part in parts])
        self.size = record_bytes(self.length)
        """Of the record."""
        self.payload_crc = checksum(parts)
        self.offset = -1
        self.place: Place | None = None
        """Where it is, once it is written."""
        self.is_refused = False
        self.is_settled = False
        """True once it is durable or never will be."""
        self._error: PenstockError | None = None
        self._calls: list[Callable[[Pending], None]] | None = None
        self._waiting: threading.Event | None = None

    @property
    def is_durable(self) -> bool:
        """True once it would outlive a crash."""
        return self.is_settled and self._error is None

    def result(self, timeout: float | None = None) -> int:
        """Returns the record's offset once it is durable.

        Args:
            timeout: seconds to wait.

        Raises:
            DiskFullError: if there was no room for it.
            LogFailedError: if the log failed.
            OutOfTimeError: if it takes longer; it may become durable yet.
        """
        with _LOCK:
            if not self.is_settled:
                self._waiting = self._waiting or threading.Event()
            waiting = self._waiting
        if waiting is not None and not waiting.wait(timeout):
            raise OutOfTimeError(
                f"Expected the log to be written within {timeout} s, it was not; ask again."
            )
        if self._error is not None:
            raise self._error
        return self.offset

    def add_done_callback(self, call: Callable[[Pending], None]) -> None:
        """Calls back once the record is durable or never will be; from the log's own thread."""
        with _LOCK:
            if not self.is_settled:
                self._calls = [*(self._calls or ()), call]
                return
        call(self)

    def settle(self, error: PenstockError | None) -> None:
        """Tells whoever waits, once."""
        self.parts = ()
        with _LOCK:
            if self.is_settled:
                return
            self._error = error
            self.is_settled = True
            calls, self._calls = self._calls, None
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.set()
        for call in calls or ():
            call(self)
