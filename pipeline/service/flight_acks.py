"""Acknowledgements of one stream of puts, written in order by a thread of their own.

Reading puts must not wait for the disk, nor the disk for a client that does not read. One message
acknowledges every put through the one it names; so whatever became safe together is told at once,
and the thread wakes once for it: waking is what costs most.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.service import rollout_log
from pipeline.service.flight_errors import fault_of
from pipeline.service.intake import Taken
from pipeline.service.state import ControlState
from pipeline.service.tokens import Token, stream_of
from schemas.errors import OutOfTimeError, PenstockError
from schemas.pulls import Ack, Fault
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
        self._changed = threading.Condition()
        self._waiting: deque[Unacked] = deque()
        """In order. What is safe is told from the front, nothing past one that is not."""
        self._is_woken = False
        self._is_ending = False
        self.error: PenstockError | None = None
        """Why nothing more will be acknowledged."""
        self._is_leaving = False
        self._has_gone = False
        self._last = Ack(sequence=-1, offset=-1, server=state.log.server)
        self._thread = threading.Thread(target=self._run, name="acks", daemon=True)
        self._thread.start()

    def add(self, one: Unacked) -> None:
        """Queues a put; waits while too many do."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < WAITING or self.error)
            if self.error is not None:
                return
            self._waiting.append(one)
        pending = one.taken.pending
        if self._level == "received" or pending is None:
            self._wake()
        else:
            pending.add_done_callback(self._wake)

    def leave(self) -> None:
        """Tells the client that the service is about to end."""
        self._is_leaving = True
        self._wake()

    def finish(self) -> None:
        """Returns when all that was queued is told, or never will be."""
        self._is_ending = True
        self._wake()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _wake(self, _: object = None) -> None:
        if self._is_woken:
            return  # the thread has not looked since, so it will see this, too
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        has_left = False
        while True:
            with self._changed:
                if self._is_ending and (not self._waiting or self.error):
                    return
                self._changed.wait_for(lambda: self._is_woken)
                self._is_woken = False
            has_told = self._acknowledge()
            if self._is_leaving and not has_left:
                has_left = True
                if not has_told:
                    self._tell()

    def _acknowledge(self) -> bool:
        """Tells what is safe; returns whether that was anything."""
        told: list[Unacked] = []
        has_told = False
        try:
            while (head := self._head()) is not None:
                if self._level == "store" and head.taken.is_end:
                    has_told = self._tell_of(told) or has_told
                    told = []
                    self._wait(head)
                elif not self._is_safe(head):
                    break
                told.append(head)
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
        except PenstockError as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()
            return self._tell_of(told, fault_of(error))
        return self._tell_of(told) or has_told

    def _head(self) -> Unacked | None:
        with self._changed:
            return self._waiting[0] if self._waiting and self.error is None else None

    def _is_safe(self, one: Unacked) -> bool:
        """True for a put that may be told; raises what it failed with."""
        pending = one.taken.pending
        if self._level != "received" and pending is not None:
            if not pending.is_settled:
                return False
            pending.result(0)
        return True

    def _tell_of(self, told: list[Unacked], error: Fault | None = None) -> bool:
        """Tells what is safe, and what is wrong: who waits sends nothing that could be answered."""
        if not told and error is None:
            return False
        said: dict[str, object] = {"error": error}
        if told:
            newest = told[-1]
            said |= {"sequence": newest.header.sequence, "offset": newest.taken.offset}
        self._last = self._last.model_copy(update=said)
        self._tell()
        self._count(told)
        return True

    def _wait(self, one: Unacked) -> None:
        while True:
            try:
                self._state.log.wait(one.taken, self._level, _LOOK_SECONDS)
            except OutOfTimeError:
                continue  # the disk, or the next seal, takes its time
            return

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
        steps: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for one in told:
            producer = one.header.producer
            steps[producer] += one.rows - one.header.end
            size[producer] += one.bytes
            metrics.put_ack.observe(now - one.came_at)
            self._state.quotas.pushed(self._token, one.taken.offset, one.bytes)
        for producer, count in steps.items():
            name = metrics.stream(stream_of(producer))
            metrics.put_steps.labels(name).inc(count)
            metrics.put_bytes.labels(name).inc(size[producer])
