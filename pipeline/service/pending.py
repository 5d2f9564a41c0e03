"""A record on its way to the disk, and the wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as OutOfTime

from pipeline.service.records import Bytes, Kind, checksum
from pipeline.service.segments import Place
from schemas.errors import OutOfTimeError, PenstockError


class Pending:
    """A record on its way to the disk."""

    __slots__ = (
        "_future",
        "is_refused",
        "kind",
        "length",
        "offset",
        "parts",
        "payload_crc",
        "place",
    )

    def __init__(self, kind: Kind, parts: Sequence[Bytes]) -> None:
        self.kind = kind
        self.parts: Sequence[Bytes] = parts
        self.length = sum(memoryview(part).nbytes for part in parts)
        self.payload_crc = checksum(parts)
        self.offset = -1
        self.place: Place | None = None
        """Where it is, once it is written."""
        self.is_refused = False
        self._future: Future[int] = Future()

    @property
    def is_settled(self) -> bool:
        """True once it is durable or never will be."""
        return self._future.done()

    @property
    def is_durable(self) -> bool:
        """True once it would outlive a crash."""
        return self._future.done() and self._future.exception() is None

    def result(self, timeout: float | None = None) -> int:
        """Returns the record's offset once it is durable.

        Args:
            timeout: seconds to wait.

        Raises:
            DiskFullError: if there was no room for it.
            LogFailedError: if the log failed.
            OutOfTimeError: if it takes longer; it may become durable yet.
        """
        try:
            return self._future.result(timeout)
        except OutOfTime:
            raise OutOfTimeError(
                f"Expected the log to be written within {timeout} s, it was not; ask again."
            ) from None

    def add_done_callback(self, call: Callable[[Pending], None]) -> None:
        """Calls back once the record is durable or never will be; from the log's own thread."""
        self._future.add_done_callback(lambda _: call(self))

    def settle(self, error: PenstockError | None) -> None:
        """Tells whoever waits."""
        self.parts = ()
        try:
            if error is None:
                self._future.set_result(self.offset)
            else:
                self._future.set_exception(error)
        except InvalidStateError:
            return
