"""Acknowledgements of one stream of puts, in order, written by a thread that serves all streams.

Reading puts must not wait for the disk, nor the disk for a client that does not read. One message
acknowledges every put through the one it names; so whatever became safe together is told at once.
Who writes it is `teller`'s business.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from prometheus_client import Counter as Metric

from pipeline.service import rollout_log
from pipeline.service.flight_errors import fault_of
from pipeline.service.intake import Taken
from pipeline.service.state import ControlState
from pipeline.service.tokens import Token, stream_of
from schemas.errors import PenstockError, TransientError
from schemas.pulls import Ack, Fault
from schemas.rollouts import PutHeader

logger = logging.getLogger(__name__)
WAITING = 256
"""Puts of a stream that may wait for their acknowledgement; then it is not read on."""


@dataclass(frozen=True, slots=True)
class Unacked:
    """A put that was taken."""

    header: PutHeader
    taken: Taken
    bytes: int
    rows: int
    came_at: float


class Acks:
    """What one stream is to be told."""

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
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        """Held while the client is told something, and for good once the stream is over."""
        self._waiting: deque[Unacked] = deque()
        """In order. What is safe is told from the front, nothing past one that is not."""
        self.error: Exception | None = None
        """Why nothing more will be acknowledged."""
        self._is_called = False
        """True if something may have become safe that whoever tells has not looked at."""
        self._is_leaving = False
        self._has_left = False
        self._is_held_up = False
        """True while somebody waits for puts to be told."""
        self._has_gone = False
        self._told: dict[str, object] = {"sequence": -1, "offset": -1, "server": state.log.server}
        """What was said last, but for whether the service is about to end."""
        self._counted: dict[str, tuple[Metric, Metric]] = {}
        """By producer, the counts of its steps and bytes: to look them up takes longer."""

    # -- for the reader of the stream ----------------------------------------------------------

    def add(self, one: Unacked) -> None:
        """Queues a put."""
        self._waiting.append(one)

    def wait_for_room(self) -> None:
        """Waits while too many puts are to be told."""
        if len(self._waiting) >= WAITING:
            self._wait_until(WAITING)

    def finish(self) -> None:
        """Returns when all that was queued is told, or never will be; nothing is told after it."""
        self._wait_until(1)
        self._telling.acquire()

    def needs_no_wait(self, one: Unacked) -> bool:
        """True for a put that nobody will be told of: it was safe when it came."""
        pending = one.taken.pending
        return self._level == "received" or pending is None or pending.is_settled

    def leave(self) -> None:
        """Will tell the client that the service is about to end."""
        self._is_leaving = True

    def _wait_until(self, fewer: int) -> None:
        with self._changed:
            self._is_held_up = True
            self._changed.wait_for(lambda: len(self._waiting) < fewer or self.error is not None)
            self._is_held_up = False

    # -- for the teller: one thread at a time --------------------------------------------------

    @property
    def has_news(self) -> bool:
        """True if there may be something to tell."""
        if self._is_leaving and not self._has_left:
            return True
        return bool(self._waiting) and self.error is None

    def tell(self) -> None:
        """Tells what is safe by now; may wait for a client that does not read."""
        self._is_called = True
        while self._is_called:
            if not self._telling.acquire(blocking=False):
                return  # the stream is over, or the thread before this one will look again
            self._is_called = False
            try:
                self._tell()
            except Exception as error:  # it ends this stream, not the thread that others need
                logger.exception("a stream of puts could not be told")
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
            finally:
                self._telling.release()

    def _tell(self) -> None:
        told: list[Unacked] = []
        failure: PenstockError | None = None
        try:
            while len(told) < len(self._waiting) and self._is_safe(self._waiting[len(told)]):
                told.append(self._waiting[len(told)])
        except PenstockError as error:
            failure = error
        if told or failure is not None:
            self._tell_of(told, None if failure is None else self._fault(failure, len(told)))
        elif self._is_leaving and not self._has_left:
            self._write()
        for _ in told:
            self._waiting.popleft()
        self.error = failure
        if self._is_held_up or failure is not None:
            with self._changed:
                self._changed.notify_all()

    def _fault(self, failure: PenstockError, at: int) -> Fault:
        """What the put at a place failed with; it names the episode that is to blame, if one is."""
        is_ours = isinstance(failure, TransientError)
        return fault_of(failure, None if is_ours else self._waiting[at].header.episode_id)

    def _is_safe(self, one: Unacked) -> bool:
        """True for a put that may be told; raises what it failed with."""
        return self._state.log.is_safe(one.taken, self._level)

    def _tell_of(self, told: list[Unacked], error: Fault | None) -> None:
        """Tells what is safe, and what is wrong: who waits sends nothing that could be answered."""
        self._told["error"] = error
        if told:
            newest = told[-1]
            self._told |= {"sequence": newest.header.sequence, "offset": newest.taken.offset}
        self._write()
        self._count(told)

    def _write(self) -> None:
        is_leaving = self._is_leaving
        if not self._has_gone:
            said = Ack(**self._told, is_draining=is_leaving)  # type: ignore[arg-type]
            try:
                self._writer.write(pa.py_buffer(said.encoded()))
            except (pa.ArrowException, OSError):
                self._has_gone = True  # what it sent stays; it will ask again
        self._has_left = is_leaving

    def _count(self, told: list[Unacked]) -> None:
        observe, now = self._state.metrics.put_ack.observe, time.monotonic()
        for producer, several in itertools.groupby(told, lambda one: one.header.producer):
            puts = list(several)
            steps, size = self._counts(producer)
            steps.inc(sum([one.rows - one.header.end for one in puts]))
            size.inc(sum([one.bytes for one in puts]))
        for one in told:
            observe(now - one.came_at)
            self._state.quotas.pushed(self._token, one.taken.offset, one.bytes)

    def _counts(self, producer: str) -> tuple[Metric, Metric]:
        found = self._counted.get(producer)
        if found is None:
            metrics = self._state.metrics
            name = metrics.stream(stream_of(producer))
            found = metrics.put_steps.labels(name), metrics.put_bytes.labels(name)
            if len(self._counted) < WAITING:
                self._counted[producer] = found
        return found
