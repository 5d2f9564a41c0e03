"""Acknowledgements of one stream of puts, written in order by a thread of their own.

Reading puts must not wait for the disk, nor the disk for a client that does not read. One message
acknowledges every put through the one it names; so whatever became safe together is told at once.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyarrow as pa

from pipeline.service import rollout_log
from pipeline.service.intake import Taken
from pipeline.service.state import ControlState
from pipeline.service.tokens import Token, stream_of
from schemas.errors import OutOfTimeError, PenstockError
from schemas.pulls import Ack
from schemas.rollouts import PutHeader

WAITING = 256
"""Puts of a stream that may wait for their acknowledgement; then it is not read on."""
_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Unacked:
    """A put that was taken."""

    header: PutHeader
    taken: Taken
    bytes: int
    rows: int
    came_at: float


class _Word(Enum):
    """What the thread is told besides puts."""

    LEAVE = 1
    END = 2


class Acks:
    """The thread of one stream."""

    def __init__(
        self,
        state: ControlState,
        writer: Any,
        level: rollout_log.Ack,
        token: Token | None,
    ) -> None:
        """Begins.

        Args:
            state: the port's.
            writer: Flight's writer of metadata.
            level: how safe a put is to be before it is acknowledged.
            token: whose stream it is.
        """
        self._state = state
        self._writer = writer
        self._level = level
        self._token = token
        self._queue: queue.Queue[Unacked | _Word] = queue.Queue(WAITING)
        self.error: PenstockError | None = None
        """Why nothing more will be acknowledged."""
        self._is_leaving = False
        self._has_gone = False
        self._last = Ack(sequence=-1, offset=-1, server=state.log.server)
        self._thread = threading.Thread(target=self._run, name="acks", daemon=True)
        self._thread.start()

    def add(self, one: Unacked) -> None:
        """Queues a put; waits while too many do."""
        self._queue.put(one)

    def leave(self) -> None:
        """Tells the client that the service is about to end."""
        self._is_leaving = True
        try:
            self._queue.put_nowait(_Word.LEAVE)
        except queue.Full:
            return  # the next acknowledgement says it

    def finish(self) -> None:
        """Returns when all that was queued is told, or never will be."""
        self._queue.put(_Word.END)
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            one = self._queue.get()
            if one is _Word.END:
                return
            if isinstance(one, Unacked):
                self._acknowledge(one)
            else:
                self._tell()

    def _acknowledge(self, one: Unacked) -> None:
        if self.error is not None:
            return
        told: list[Unacked] = []
        following: Unacked | None = one
        try:
            while following is not None:
                self._wait(following)
                told.append(following)
                following = self._next()
        except PenstockError as error:
            self.error = error
        if told:
            newest = told[-1]
            sequence, offset = newest.header.sequence, newest.taken.offset
            self._last = self._last.model_copy(update={"sequence": sequence, "offset": offset})
            self._tell()
            self._count(told)

    def _wait(self, one: Unacked) -> None:
        while True:
            try:
                self._state.log.wait(one.taken, self._level, _LOOK_SECONDS)
            except OutOfTimeError:
                continue  # the disk, or the next seal, takes its time
            return

    def _next(self) -> Unacked | None:
        """Returns the next put if it is safe already."""
        with self._queue.mutex:
            head = self._queue.queue[0] if self._queue.queue else None
        if not isinstance(head, Unacked) or (self._level == "store" and head.taken.is_end):
            return None
        pending = head.taken.pending
        if self._level != "received" and pending is not None and not pending.is_durable:
            return None
        self._queue.get()
        return head

    def _tell(self) -> None:
        if self._has_gone:
            return
        said = self._last.model_copy(update={"is_draining": self._is_leaving})
        try:
            self._writer.write(pa.py_buffer(said.encoded()))
        except (pa.ArrowException, OSError):
            self._has_gone = True  # what it sent stays; it will ask again

    def _count(self, told: list[Unacked]) -> None:
        metrics, now = self._state.metrics, time.monotonic()
        for one in told:
            name = metrics.stream(stream_of(one.header.producer))
            metrics.put_steps.labels(name).inc(one.rows - one.header.end)
            metrics.put_bytes.labels(name).inc(one.bytes)
            metrics.put_ack.observe(now - one.came_at)
            self._state.quotas.pushed(self._token, one.taken.offset, one.bytes)
