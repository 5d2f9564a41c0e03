"""One way to a service: episodes of one layout, sent over one stream at a time by one thread.

A stream has one Arrow schema, so each layout has a lane, with a producer's name of its own. When a
stream ends, whatever the reason, the lane connects anew, maybe elsewhere, begins a larger epoch,
and sends all that it keeps again: open episodes and those that were not acknowledged. The service
keeps what is sent twice once.

Where nothing waits for an acknowledgement, who pushes writes the put on the spot: to wake the
thread takes as long as to write. It cannot be held up by that, for the put fits what the service,
which has read all before it, takes unread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.flight as fl

from pipeline.service.client.connecting import Addresses, Backoff
from pipeline.service.client.faults import OF_EPISODE, WIRE, error_of, error_of_kind, fault_in
from pipeline.service.client.outbox import Offset, Outbox, Outgoing
from pipeline.service.client.settings import ClientSettings
from schemas.errors import (
    BusyError,
    OutOfTimeError,
    PenstockError,
    PutError,
    TransientError,
)
from schemas.pulls import Ack, PutStream, read_said
from schemas.rollouts import PutHeader

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
_CLOSE_SECONDS = 1.0
DIRECT_BYTES = 32 << 10
"""The largest put that who pushes writes: half of what HTTP/2 lets a peer send unread."""


class _EndedError(Exception):
    """A stream that is over without a fault of ours: what is kept is sent on another."""


class Lane:
    """The thread, and what it is told."""

    def __init__(
        self, addresses: Addresses, settings: ClientSettings, producer: str, outbox: Outbox
    ) -> None:
        """Begins; connects when there is something to send."""
        self.outbox = outbox
        self._addresses = addresses
        self._settings = settings
        self._producer = producer
        self._epoch = 0
        self._backoff = Backoff(settings)
        self._is_closing = False
        self._looked_at = time.monotonic()
        self._watched: _Stream | None = None
        """The stream that the thread looks after while it waits; others may write to it then."""
        self.error: PenstockError | None = None
        """Why the last stream ended."""
        outbox.offer = self._offered
        self._thread = threading.Thread(target=self._run, name="penstock-lane", daemon=True)
        self._thread.start()

    def close(self, timeout: float | None) -> None:
        """Ends the stream and the thread; what is not acknowledged is not sent any more."""
        with self.outbox.changed:
            self._is_closing = True
            self.outbox.changed.notify_all()
        self._thread.join(timeout)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._stream()
            except _EndedError:
                self._addresses.failed(self._at)
                self._sleep(self._backoff.pause())
            except PenstockError as error:
                self._recover(error)
            except Exception as error:  # a fault of ours must not leave anybody waiting for ever
                logger.exception("a lane failed")
                self._fail_all(TransientError(f"The client met a fault of its own: {error}."))
        gone = "Expected an open client until everything is acknowledged, it was closed before"
        self.outbox.close(OutOfTimeError(f"{gone}; what was pushed may be there, push it again."))

    def _wait_for_work(self) -> bool:
        with self.outbox.changed:
            while not self._is_closing and not self.outbox.episodes:
                self.outbox.changed.wait()
            return not self._is_closing

    def _stream(self) -> None:
        self.outbox.begin_epoch()
        self._epoch = max(time.time_ns(), self._epoch + 1)
        client, self._at = self._addresses.connect()
        try:
            with self.outbox.changed:
                first = self.outbox.next()
            if first is None:
                return
            schema = first.batches[0].schema
            stream = _Stream(client, self._addresses, self._settings, schema, self.outbox)
        except WIRE as error:
            client.close()
            raise error_of(error) from None
        try:
            self._pump(stream)
        except (_EndedError, PenstockError):
            said = stream.finish()
            if said is None:
                raise
            raise said from None  # what the service said is the reason for what broke here
        stream.finish()

    def _pump(self, stream: _Stream) -> None:
        """Sends until the client is closed; everything else is raised."""
        while True:
            with self.outbox.changed:
                one = self._next(stream)
                if one is None:
                    return
                write = self._claim(stream, one)
            write()

    def _claim(self, stream: _Stream, one: Outgoing) -> Callable[[], None]:
        """Counts an episode's next rows as sent; returns what sends them, and may raise."""
        rows, start = one.batches[one.sent], one.rows_sent
        one.sent += 1
        one.rows_sent += rows.num_rows
        is_last = one.facts is not None and not one.has_unsent
        sequence = stream.sequence
        stream.sequence += 1
        if not stream.sent:
            stream.moved_at = time.monotonic()
        stream.sent.append((sequence, one, is_last))
        if stream.has_acks:
            self._backoff.reset()
        said = {
            "producer": self._producer,
            "epoch": self._epoch,
            "sequence": sequence,
            "episode_id": one.episode_id,
            "start": start,
            "end": is_last,
            "facts": one.facts if is_last else None,
        }
        return lambda: stream.write(rows, PutHeader.of(**said))

    # -- the threads that push -----------------------------------------------------------------

    def _offered(self, one: Outgoing, size: int) -> Callable[[], None] | None:
        """Says how to send the rows just added on the spot, if that can hold nobody up."""
        stream = self._watched
        if stream is None or size > DIRECT_BYTES or stream.is_written or stream.sent:
            return None
        if stream.is_over or stream.is_draining or self._is_closing or stream.failure is not None:
            return None
        if self.outbox.next() is not one or one.sent + 1 != len(one.batches):
            return None
        stream.is_written = True
        return partial(self._send, stream, self._claim(stream, one))

    def _send(self, stream: _Stream, write: Callable[[], None]) -> None:
        """Writes to a stream; what goes wrong is the lane's business, which sends all again."""
        failure: PenstockError | None = TransientError("Expected a put to be written, it was not.")
        try:
            write()
            failure = None
        except PenstockError as error:
            failure = error
        finally:
            with self.outbox.changed:
                stream.is_written = False
                stream.failure = failure
                is_left = self._watched is not stream
                if is_left or failure is not None or self.outbox.next() is not None:
                    self.outbox.changed.notify_all()

    # -- the lane's thread ---------------------------------------------------------------------

    def _next(self, stream: _Stream) -> Outgoing | None:
        """Waits for something that may be sent; None if the client is closed."""
        while True:
            now = time.monotonic()
            if stream.is_over:
                raise _EndedError
            if stream.failure is not None:
                raise stream.failure
            if self._is_closing:
                return None
            if stream.sent and now - stream.moved_at > self._settings.ack_seconds:
                raise OutOfTimeError(
                    f"Expected an acknowledgement within {self._settings.ack_seconds:g} s, came "
                    f"none."
                )
            if now - self._looked_at > _LOOK_SECONDS:
                self._looked_at = now
                self.outbox.give_up(now, self._late)
            if stream.is_draining and not stream.sent:
                raise _EndedError
            found = self.outbox.next()
            is_free = len(stream.sent) < self._settings.window and not stream.is_draining
            if found is not None and is_free and not stream.is_written:
                return found
            self.outbox.waits_for_room = found is not None
            is_awake = bool(self.outbox.episodes)  # asleep, it would not see that time runs out
            self._watched = stream if is_awake else None
            self.outbox.changed.wait(_LOOK_SECONDS if is_awake else None)
            self._watched = None
            self.outbox.waits_for_room = False

    def _recover(self, error: PenstockError) -> None:
        """Does what an error asks for; then everything that is kept is sent again."""
        self.error = error
        if error.kind in OF_EPISODE and error.where is not None:
            with self.outbox.changed:
                refused = [o for o in self.outbox.episodes if o.episode_id == error.where]
            self.outbox.settle_all(refused, error)
            if refused:
                return
        # What cannot be read names no episode: it did not arrive as it was sent.
        is_mangled = isinstance(error, PutError) and error.where is None
        if not (is_mangled or isinstance(error, TransientError)):
            self._fail_all(error)
            return
        self._addresses.failed(self._at)
        least = error.retry_after if isinstance(error, BusyError) else 0.0
        logger.info("connecting anew: %s", error)
        self._sleep(self._backoff.pause(least))

    def _sleep(self, seconds: float) -> None:
        """Waits, while time may run out for some."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._is_closing:
            self.outbox.give_up(time.monotonic(), self._late)
            with self.outbox.changed:
                self.outbox.changed.wait(min(left, _LOOK_SECONDS))

    def _fail_all(self, error: PenstockError) -> None:
        with self.outbox.changed:
            kept = list(self.outbox.episodes)
        self.outbox.settle_all(kept, error)

    def why_late(self) -> str:
        """Says, as the end of a sentence, why something is not acknowledged yet."""
        if self.error is not None:
            return f"; the last error was: {self.error.message.rstrip('.')}"
        return (
            "; no answer came yet: the service may hold the stream back (the token's quota, no "
            "room in its log), wait for its disk, or be out of reach"
        )

    def _late(self, one: Outgoing) -> PenstockError:
        return OutOfTimeError(
            f"Expected the episode {one.episode_id!r} to be acknowledged within "
            f"{self._settings.retry_seconds:g} s, it was not{self.why_late()}."
        )


class _Stream:
    """One DoPut."""

    def __init__(
        self,
        client: fl.FlightClient,
        addresses: Addresses,
        settings: ClientSettings,
        schema: pa.Schema,
        outbox: Outbox,
    ) -> None:
        said = PutStream(ack=settings.ack).encoded()
        descriptor = fl.FlightDescriptor.for_command(said)
        self._client = client
        self._writer, self._reader = client.do_put(descriptor, schema, addresses.options())
        self._outbox = outbox
        self.sent: deque[tuple[int, Outgoing, bool]] = deque()
        """Sequence, episode, whether it ends it: of what is not acknowledged."""
        self.moved_at = time.monotonic()
        """When something was acknowledged last, or began to wait."""
        self.has_acks = False
        self.sequence = 0
        """Of the next put."""
        self.is_written = False
        """True while another thread than the lane's writes to it."""
        self.failure: PenstockError | None = None
        """What that thread met."""
        self.is_over = False
        self.is_draining = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="penstock-acks", daemon=True)
        self._thread.start()

    def write(self, rows: pa.RecordBatch, header: PutHeader) -> None:
        """Sends one put.

        Raises:
            TransientError: if the stream broke.
        """
        try:
            self._writer.write_with_metadata(rows, header.encoded())
        except WIRE as error:
            raise error_of(error) from None

    def finish(self) -> PenstockError | None:
        """Ends the stream; returns what it ended with, as the service or the wire says.

        What may block for as long as a dead peer does not answer is done beside.
        """
        closer = threading.Thread(target=self._close, name="penstock-closes", daemon=True)
        closer.start()
        closer.join(_CLOSE_SECONDS)
        if self._error is None:
            return None
        said, fault = error_of(self._error), fault_in(self._error)
        if fault is not None:
            said.where = fault.episode_id
        return said

    def _close(self) -> None:
        with self._outbox.changed:  # two threads must not use the writer at a time
            self._outbox.changed.wait_for(lambda: not self.is_written)
        try:
            if not self.is_over:
                self._writer.done_writing()
            self._thread.join()
            self._writer.close()
        except WIRE as error:
            self._error = self._error or error
        with contextlib.suppress(*WIRE):
            self._client.close()

    def _read(self) -> None:
        """Reads acknowledgements until there are no more."""
        try:
            while (data := self._reader.read()) is not None:
                self._acknowledged(read_said(Ack, data.to_pybytes()))
        except (*WIRE, PenstockError) as error:
            self._error = error
        with self._outbox.changed:
            self.is_over = True
            self._outbox.changed.notify_all()

    def _acknowledged(self, ack: Ack) -> None:
        safe: list[Outgoing] = []
        with self._outbox.changed:
            while self.sent and self.sent[0][0] <= ack.sequence:
                _, one, is_last = self.sent.popleft()
                if is_last:
                    safe.append(one)
            self.moved_at = time.monotonic()
            self.has_acks = self.has_acks or ack.sequence >= 0
            self.is_draining = self.is_draining or ack.is_draining
            if self._outbox.waits_for_room or self.is_draining:
                self._outbox.changed.notify_all()
        self._outbox.settle_all(safe, Offset(ack.offset, ack.server))
        if ack.error is not None:
            said = error_of_kind(ack.error.kind, ack.error.message, ack.error.retry_after)
            said.where = ack.error.episode_id
            raise said
