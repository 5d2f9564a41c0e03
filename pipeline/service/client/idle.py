"""Connections that are used again: to open one takes longer than most pulls do."""

from __future__ import annotations

import contextlib
import threading
from typing import NamedTuple

import pyarrow.flight as fl

from pipeline.service.client.connecting import Addresses
from pipeline.service.client.faults import WIRE

KEPT = 4
"""Connections that are kept while nobody uses them."""


class Connection(NamedTuple):
    """A connection that one call at a time uses."""

    client: fl.FlightClient
    at: int
    """The number of its address, for `Addresses.failed`."""
    is_used: bool
    """True if it served before: it may have broken since, which says nothing of the service."""

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(*WIRE):
            self.client.close()


class IdleConnections:
    """Hands out connections and takes them back; safe to use from several threads."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._is_closed = False

    def take(self) -> Connection:
        """Returns a connection to the server whose turn it is."""
        with self._lock:
            idle, self._idle = self._idle, []
            for one in idle:
                if one.at == self._addresses.at:
                    self._idle.append(one)
                else:
                    one.close()
            if self._idle:
                return self._idle.pop()
        client, at = self._addresses.connect()
        return Connection(client, at, is_used=False)

    def give_back(self, one: Connection) -> None:
        """Takes a connection back whose call went well to its end."""
        with self._lock:
            if not self._is_closed and len(self._idle) < KEPT:
                self._idle.append(one._replace(is_used=True))
                return
        one.close()

    def close(self) -> None:
        """Ends those that nobody uses; one in use ends with its call."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()
