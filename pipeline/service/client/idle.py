"""Connections that are used again: to open one takes longer than most pulls do.

A stream of small pulls is kept as well, for a moment: an open stream holds a thread of the service.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

import pyarrow.flight as fl

from pipeline.service.client.connecting import Addresses
from pipeline.service.client.faults import WIRE
from schemas.pulls import PullStream

CLOSE_SECONDS = 1.0
KEPT = 4
"""Connections that are kept while nobody uses them."""
STREAM_SECONDS = 1.0
"""How long the stream of one of them is kept open."""


@dataclass(eq=False)
class Connection:
    """A connection that one call at a time uses."""

    client: fl.FlightClient
    at: int
    """The number of its address, for `Addresses.failed`."""
    asked: PullStream
    """How its stream of small pulls begins."""
    is_used: bool = False
    """True if it served before: it may have broken since, which says nothing of the service."""
    stream: tuple[fl.FlightStreamWriter, fl.FlightStreamReader] | None = None
    """Of small pulls, if one is open."""
    idle_since: float = field(default_factory=time.monotonic)

    def opened(self, addresses: Addresses) -> tuple[fl.FlightStreamWriter, fl.FlightStreamReader]:
        """Returns its stream of small pulls."""
        if self.stream is None:
            descriptor = fl.FlightDescriptor.for_command(self.asked.encoded())
            self.stream = self.client.do_exchange(descriptor, addresses.options())
        return self.stream

    def end_stream(self) -> None:
        """Ends its stream of small pulls, if one is open."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(*WIRE):
                stream[0].done_writing()
            with contextlib.suppress(*WIRE):
                stream[0].close()

    def close(self) -> None:
        """Ends it."""
        self.end_stream()
        with contextlib.suppress(*WIRE):
            self.client.close()


class IdleConnections:
    """Hands out connections and takes them back; safe to use from several threads."""

    def __init__(self, addresses: Addresses, asked: PullStream) -> None:
        self._addresses = addresses
        self._asked = asked
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._is_closed = False
        self._ender: threading.Thread | None = None

    def take(self) -> Connection:
        """Returns a connection to the server whose turn it is."""
        with self._changed:
            idle, self._idle = self._idle, []
            for one in idle:
                if one.at == self._addresses.at:
                    self._idle.append(one)
                else:
                    one.close()
            if self._idle:
                return self._idle.pop()
        client, at = self._addresses.connect()
        return Connection(client, at, self._asked)

    def give_back(self, one: Connection) -> None:
        """Takes a connection back whose call went well to its end."""
        with self._changed:
            if not self._is_closed and len(self._idle) < KEPT:
                one.is_used, one.idle_since = True, time.monotonic()
                self._idle.append(one)
                if one.stream is not None and self._ender is None:
                    self._ender = threading.Thread(
                        target=self._end_streams, name="penstock-idle", daemon=True
                    )
                    self._ender.start()
                return
        one.close()

    def close(self) -> None:
        """Ends those that nobody uses; one in use ends with its call."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()

        def end() -> None:
            for one in idle:
                one.close()

        # A peer that is dead would be waited for until its connection is given up.
        ender = threading.Thread(target=end, name="penstock-closes", daemon=True)
        ender.start()
        ender.join(CLOSE_SECONDS)

    def _end_streams(self) -> None:
        """Ends streams that nobody used for a while; ends when there are no more."""
        while True:
            with self._changed:
                open_ones = [one for one in self._idle if one.stream is not None]
                if not open_ones:
                    self._ender = None
                    return
                now = time.monotonic()
                due = [one for one in open_ones if now - one.idle_since >= STREAM_SECONDS]
                for one in due:
                    one.end_stream()
                if not due:
                    self._changed.wait(
                        min(one.idle_since for one in open_ones) + STREAM_SECONDS - now
                    )
