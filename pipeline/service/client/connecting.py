"""Connections to a service: one of several addresses, the next one after each failure."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pyarrow.flight as fl

from pipeline.service.client.settings import ClientSettings, root_certs
from schemas.errors import ConfigError
from schemas.tracing import HEADER

SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")


class Addresses:
    """The addresses of servers of one store, and which of them is tried next."""

    def __init__(self, given: str | Sequence[str], settings: ClientSettings, token: str | None):
        addresses = [given] if isinstance(given, str) else list(given)
        wrong = [one for one in addresses if one.partition("://")[0] not in SCHEMES]
        if not addresses or wrong:
            raise ConfigError(
                f"Expected addresses such as grpc://127.0.0.1:8815 or grpc+tls://host:8815, came "
                f"{wrong[0] if wrong else 'none'!r}."
            )
        self._addresses = addresses
        self._settings = settings
        self._token = token
        self._lock = threading.Lock()
        self._at = 0
        self._roots = root_certs(settings)

    def connect(self) -> tuple[fl.FlightClient, int]:
        """Returns a connection of its own to the server whose turn it is, and its number."""
        with self._lock:
            at = self._at
        milliseconds = int(self._settings.keepalive_seconds * 1000)
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", max(milliseconds // 2, 1)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),
        ]
        address = self._addresses[at % len(self._addresses)]
        return fl.FlightClient(address, tls_root_certs=self._roots, generic_options=options), at

    @property
    def at(self) -> int:
        """The number of the address whose turn it is."""
        return self._at

    def failed(self, at: int) -> None:
        """Says that a connection did not serve; the next one goes to the next address."""
        with self._lock:
            if self._at == at:
                self._at += 1

    def options(self, timeout: float | None = None) -> fl.FlightCallOptions:
        """Returns the options of a call: the token, and seconds for all of it."""
        headers = []
        if self._token is not None:
            headers.append((b"authorization", f"Bearer {self._token}".encode()))
        if self._settings.traceparent is not None:
            headers.append((HEADER.encode(), self._settings.traceparent.encode()))
        return fl.FlightCallOptions(timeout=timeout, headers=headers)


class Backoff:
    """Pauses between tries, that grow and differ from client to client."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._tries = 0

    def pause(self, least: float = 0.0) -> float:
        """Returns how many seconds to wait before the next try, at least so many."""
        grown = self._settings.backoff_seconds * 2.0 ** min(self._tries, 30)
        self._tries += 1
        wait = max(min(grown, self._settings.max_backoff_seconds), least)
        return wait * (1 + self._random.random() / 2)

    def reset(self) -> None:
        """Says that a try went well."""
        self._tries = 0
