"""What a client keeps until it is acknowledged: open and ended episodes, as rows, in order.

Everything is kept, for after a break all of it is sent again. Its bytes are bounded: who adds more
waits, and if nothing can become free by waiting, is told so.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from schemas.errors import BusyError, PenstockError, UsageError
from schemas.rollouts import EpisodeFacts


class Offset(int):
    """Where a server's log has the end of an episode, or what came after it."""

    server: str

    def __new__(cls, value: int, server: str) -> Offset:
        """Returns an offset of a server."""
        made = super().__new__(cls, value)
        made.server = server
        return made


class Ending(NamedTuple):
    """What goes with an episode's last rows."""

    facts: EpisodeFacts
    deadline: float | None
    """When it is given up, by the monotonic clock; None for never."""


@dataclass(eq=False)
class Outgoing:
    """One episode on its way."""

    episode_id: str
    deadline: float | None = None
    """When it is given up, by the monotonic clock; None while it is open."""
    batches: list[pa.RecordBatch] = field(default_factory=list)
    facts: EpisodeFacts | None = None
    """There once it is ended: then the last batch ends it."""
    sent: int = 0
    """Batches that were sent in this epoch."""
    rows_sent: int = 0
    """Rows in them."""
    bytes: int = 0
    future: Future[Offset] = field(default_factory=Future)
    is_gone: bool = False
    """True once nobody waits for it any more."""
    is_ready: bool = False
    """True while it is among those that the lane looks at."""

    @property
    def has_unsent(self) -> bool:
        """True if there is something to send."""
        return self.sent < len(self.batches)

    def settle(self, outcome: Offset | PenstockError) -> None:
        """Tells whoever waits."""
        self.is_gone = True
        try:
            if isinstance(outcome, PenstockError):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            return  # it was cancelled


class Budget:
    """The bytes of everything that a client keeps."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._ending = 0
        self._freed = threading.Condition()

    def take(self, count: int, timeout: float | None) -> None:
        """Takes some bytes; waits while ended episodes may yet free some.

        Raises:
            BusyError: if they do not in time, or if open episodes alone fill the buffer.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._freed:
            while self._held + count > self._most:
                left = None if until is None else until - time.monotonic()
                if not self._ending or (left is not None and left <= 0):
                    why = "in time" if self._ending else "until an open episode ends"
                    raise BusyError(
                        f"Expected room for {count:,} bytes in a buffer of {self._most:,}, there "
                        f"will be none {why}; wait for what was pushed, or raise buffer_bytes."
                    )
                self._freed.wait(left)
            self._held += count

    def ended(self) -> None:
        """Says that an episode ended: it will be free when it is acknowledged."""
        with self._freed:
            self._ending += 1

    def free(self, count: int, *, was_ended: bool) -> None:
        """Gives bytes back."""
        with self._freed:
            self._held -= count
            self._ending -= was_ended
            self._freed.notify_all()

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        return self._held


class Outbox:
    """The episodes of one lane, in the order of their begins; its condition guards them."""

    def __init__(self, budget: Budget, failed: Callable[[PenstockError], None]) -> None:
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        """Told of what the lane waits for."""
        self.episodes: dict[Outgoing, None] = {}
        self._closed: PenstockError | None = None
        self.waits_for_room = False
        """True while the lane has rows to send and waits for acknowledgements alone."""
        self.offer: Callable[[Outgoing, int], Callable[[], None] | None] = lambda *_: None
        """Asked, with the condition held, of an episode to which rows of so many bytes were added:
        what it returns sends them, from the thread that added them; None leaves that to the lane.
        """
        self._ready: deque[Outgoing] = deque()
        self._ended = threading.Condition(lock)
        self._budget = budget
        self._failed = failed

    def add(
        self,
        one: Outgoing,
        rows: pa.RecordBatch,
        timeout: float | None,
        ending: Ending | None = None,
    ) -> None:
        """Adds rows to an episode; the first make it known, those with an ending end it.

        Raises:
            BusyError: see `Budget.take`.
            PenstockError: what the episode failed with before, or why nothing is sent any more.
        """
        is_whole = ending is not None and not one.batches
        # Of rows that are not a slice of others the buffers tell their size, in no time.
        size = rows.get_total_buffer_size() if is_whole else rows.nbytes
        self._budget.take(size, timeout)
        with self.changed:
            if one.is_gone:
                self._budget.free(size, was_ended=False)
                error = one.future.exception(0) if one.future.done() else None
                raise error or UsageError(f"Expected an open episode, {one.episode_id!r} is not.")
            if self._closed is not None:
                self._budget.free(size, was_ended=False)
                raise self._closed
            if not one.batches:
                self.episodes[one] = None
            one.batches.append(rows)
            one.bytes += size
            if ending is not None:
                one.facts, one.deadline = ending
                self._budget.ended()
            if not one.is_ready:
                one.is_ready = True
                self._ready.append(one)
            send = self.offer(one, size)
            if send is None and not self.waits_for_room:
                self.changed.notify_all()
        if send is not None:
            send()

    def next(self) -> Outgoing | None:
        """Returns an episode with something to send; call with the condition held."""
        while self._ready:
            one = self._ready[0]
            if one.has_unsent and one in self.episodes:
                return one
            one.is_ready = False
            self._ready.popleft()
        return None

    def begin_epoch(self) -> None:
        """Forgets what was sent."""
        with self.changed:
            for one in self.episodes:
                one.sent = one.rows_sent = 0
                one.is_ready = True
            self._ready = deque(self.episodes)

    def settle(self, one: Outgoing, outcome: Offset | PenstockError) -> None:
        """Lets go of an episode; tells whoever waits."""
        self.settle_all([one], outcome)

    def settle_all(self, ones: Sequence[Outgoing], outcome: Offset | PenstockError) -> None:
        """Lets go of episodes that end alike; tells whoever waits."""
        with self.changed:
            for one in ones:
                if one in self.episodes:
                    del self.episodes[one]
                    self._budget.free(one.bytes, was_ended=one.facts is not None)
            self._ended.notify_all()
        for one in ones:
            if isinstance(outcome, PenstockError) and not one.is_gone:
                self._failed(outcome)
            one.settle(outcome)

    def close(self, why: PenstockError) -> None:
        """Takes nothing more, and lets go of all that is kept: nobody is left waiting for it."""
        with self.changed:
            self._closed = why
            kept = list(self.episodes)
        for one in kept:
            self.settle(one, why)

    def drop(self, one: Outgoing, why: PenstockError) -> None:
        """Lets go of an episode that its sender gave up, who knows of it."""
        one.is_gone = True
        self.settle(one, why)

    def give_up(self, now: float, why: Callable[[Outgoing], PenstockError]) -> None:
        """Lets go of the episodes whose time is over, and of those that were cancelled."""
        with self.changed:
            late = [
                one
                for one in self.episodes
                if (one.deadline is not None and one.deadline <= now) or one.future.cancelled()
            ]
        for one in late:
            self.settle(one, why(one))

    def wait_for_ended(self, timeout: float | None) -> bool:
        """Waits until no ended episode is left; returns whether that is so."""
        with self.changed:
            return self._ended.wait_for(
                lambda: all(one.facts is None for one in self.episodes), timeout
            )
