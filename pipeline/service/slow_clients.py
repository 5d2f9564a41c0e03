"""Connections that send no whole request are closed; uvicorn alone would keep them for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_with(header_seconds: float) -> type[H11Protocol]:
    """Returns uvicorn's HTTP protocol with a limit on how long headers take to arrive.

    Args:
        header_seconds: from a connection's begin, or from the first byte of a later request.
    """

    class Impatient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """A connection came: its first request is to come in time."""
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            """Bytes came: either a request is whole, or the rest is to come in time."""
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            """The connection is gone."""
            super().connection_lost(exc)
            self._forget()

        def _is_waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._is_waiting():
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(header_seconds, self._give_up)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if self._is_waiting() and not self.transport.is_closing():
                self.transport.close()

    return Impatient
