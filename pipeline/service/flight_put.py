"""One stream of puts: read, checked, handed to the log, acknowledged beside.

The end of a stream says nothing: one that breaks off looks like one that is over. A put that the
log has no room for at the moment is held, and with it the stream, so that a client that sends too
fast is slowed down by Flight itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.service.flight_acks import Acks, Unacked
from pipeline.service.flight_auth import Caller, write_deed
from pipeline.service.flight_errors import flight_error, unreadable
from pipeline.service.intake import Shape, Taken
from pipeline.service.logs import facts_of
from pipeline.service.state import ControlState
from pipeline.service.teller import Teller
from pipeline.service.tokens import Token, check_producer
from schemas.errors import BusyError, PenstockError, PutError
from schemas.pulls import PutStream, read_said
from schemas.rollouts import PutHeader, read_header

logger = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.25
_T = TypeVar("_T")


class Streams:
    """The streams of puts that are open."""

    def __init__(self, state: ControlState) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._open: set[Acks] = set()
        self._teller = Teller()
        state.log.listen(self._teller.wake)
        self.is_draining = False

    def leave(self) -> None:
        """Takes no more streams, and asks those that are open to end."""
        with self._lock:
            self.is_draining = True
            waiting = list(self._open)
        for acks in waiting:
            acks.leave()
        self._teller.wake()

    def __len__(self) -> int:
        return len(self._open)

    def serve(self, caller: Caller, context: Any, command: bytes, reader: Any, writer: Any) -> None:
        """Takes puts until the client sends no more.

        Raises:
            FlightError: what the client is to be told.
        """
        error: Exception | None = None
        stream = _Stream(self._state, caller, context)
        try:
            token = caller.check(("push",))
            level = read_said(PutStream, command or b"{}").ack
            with self._state.quotas.stream(token):
                acks = Acks(self._state, writer, level, token)
                self._enter(acks)
                try:
                    stream.read(reader, acks, self._teller)
                finally:
                    acks.finish()
                    self._teller.let_go(acks)
                    with self._lock:
                        self._open.discard(acks)
                if acks.error is not None:
                    raise acks.error
        except Exception as raised:
            error = raised
            if isinstance(raised, PenstockError):
                self._state.metrics.put_rejected.labels(raised.kind).inc()
                said = {"episode_id": stream.episode_id} if stream.episode_id else {}
                logger.info("puts refused", extra={**facts_of(raised), **said})
            raise flight_error(raised, stream.episode_id) from None
        finally:
            write_deed(self._state, caller.token, "DO_PUT", context.peer(), error)

    def _enter(self, acks: Acks) -> None:
        with self._lock:
            if self.is_draining:
                raise BusyError("Expected a service that stays, this one is about to end.")
            self._open.add(acks)
        self._teller.serve(acks)


class _Stream:
    """What is known while one stream is read."""

    def __init__(self, state: ControlState, caller: Caller, context: Any) -> None:
        self._state = state
        self._caller = caller
        self._context = context
        self.episode_id: str | None = None
        self._shape: Shape | None = None

    def read(self, reader: Any, acks: Acks, teller: Teller) -> None:
        """Hands every put to the log."""
        for data, rows in _chunks(reader):
            came_at = time.monotonic()
            if acks.error is not None:
                raise acks.error
            self._caller.check_again()
            header = read_header(data)
            self.episode_id = header.episode_id
            check_producer(self._caller.token, header.producer)
            size = rows.get_total_buffer_size()
            taken = self._patiently(self._take, header, rows, size)
            acks.wait_for_room()
            one = Unacked(header, taken, size, rows.num_rows, came_at)
            acks.add(one)
            if acks.needs_no_wait(one):
                teller.wake()
            self.episode_id = None

    def _take(self, header: PutHeader, rows: pa.RecordBatch, size: int) -> Taken:
        token: Token | None = self._caller.token
        if token is not None and token.quota.unsealed_bytes is not None:
            self._state.quotas.check_unsealed(token, self._state.log.sealed_through)
        self._shape = self._state.log.shape(rows.schema, self._shape)
        taken = self._state.log.put(header, rows, self._shape)
        self._patiently(self._state.quotas.spend, token, size)
        return taken

    def _patiently(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Does something that may have to wait for room, within the time of a request."""
        until = time.monotonic() + self._state.config.request_seconds
        while True:
            try:
                return work(*arguments)
            except BusyError as error:
                left = until - time.monotonic()
                if left <= 0 or self._context.is_cancelled():
                    raise
                time.sleep(min(error.retry_after, left, _PAUSE_SECONDS))


def _chunks(reader: Any) -> Iterator[tuple[memoryview, pa.RecordBatch]]:
    """Yields the header and the rows of each put; neither is checked yet."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except (pa.ArrowException, OSError, MemoryError, UnicodeError) as error:
            raise unreadable(error) from None
        if chunk.data is None or chunk.app_metadata is None:
            raise PutError("Expected rows with a header in every message, came one without.")
        yield memoryview(chunk.app_metadata), chunk.data
