"""The thread that tells all streams what is safe: it wakes once for a group, not for each put.

A client that does not read may hold a write up for as long as it likes. Then the thread is left to
that stream, which it serves alone from then on, and another takes its place: the others wait about
`PATIENCE_SECONDS`, once for such a client and never again.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

PATIENCE_SECONDS = 0.1
"""How long a write may take until the thread counts as stuck."""


class Told(Protocol):
    """A stream, as the teller sees it."""

    @property
    def has_news(self) -> bool:
        """True if there may be something to tell."""
        ...

    def tell(self) -> None:
        """Tells what is safe by now; may wait for the client."""
        ...


class _Shift:
    """What one thread does."""

    def __init__(self) -> None:
        self.is_called = True
        self.is_over = False
        self.own: Told | None = None
        """The one stream that it is for; None for all that have none of their own."""
        self.at: Told | None = None
        """The stream that is being told."""
        self.since = 0.0
        """When that began."""


class Teller:
    """Serves streams that come and go; has threads while there are any. Safe to share."""

    def __init__(self, name: str = "acks") -> None:
        self._name = name
        self._changed = threading.Condition()
        self._streams: dict[Told, _Shift] = {}
        self._shift: _Shift | None = None
        """Of the thread that serves all streams which have none of their own."""
        self._is_busy = threading.Event()
        """Set while there is something to look after."""

    def serve(self, stream: Told) -> None:
        """Serves a stream from now on."""
        with self._changed:
            if self._shift is None:
                self._shift = _Shift()
                self._start(self._run, self._shift)
                self._start(self._watch, self._shift)
            self._streams[stream] = self._shift

    def let_go(self, stream: Told) -> None:
        """Serves a stream no more, once the `tell` that may be going on returns."""
        with self._changed:
            shift = self._streams.pop(stream)
            if shift.own is stream:
                shift.is_over = True
            if not self._streams and self._shift is not None:
                self._shift.is_over = True
                self._shift = None
                self._is_busy.set()
            self._changed.notify_all()

    def wake(self) -> None:
        """Looks at all streams: something became safe."""
        with self._changed:
            if self._shift is not None:
                for shift in {self._shift, *self._streams.values()}:
                    shift.is_called = True
                self._changed.notify_all()

    # -- the threads ---------------------------------------------------------------------------

    def _start(self, work: object, shift: _Shift) -> None:
        threading.Thread(target=work, args=(shift,), name=self._name, daemon=True).start()  # type: ignore[arg-type]

    def _run(self, shift: _Shift) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: shift.is_called or shift.is_over)
                shift.is_called = False
                if shift.is_over:
                    return
                mine = [one for one, by in self._streams.items() if by is shift and one.has_news]
            for stream in mine:
                if self._streams.get(stream) is shift:  # it may have another thread by now
                    self._tell(shift, stream)

    def _tell(self, shift: _Shift, stream: Told) -> None:
        if shift.own is None:
            shift.since = time.monotonic()
            shift.at = stream
            if not self._is_busy.is_set():
                self._is_busy.set()
        try:
            stream.tell()
        finally:
            shift.at = None

    def _watch(self, shift: _Shift) -> None:
        """Looks after the thread that serves many, as long as there is one."""
        while not shift.is_over:
            self._is_busy.wait()
            since = shift.since
            time.sleep(PATIENCE_SECONDS)
            if shift.at is not None and time.monotonic() - shift.since >= PATIENCE_SECONDS:
                shift = self._replaced(shift)
            elif shift.since == since:
                self._is_busy.clear()
                if shift.at is not None or shift.since != since or shift.is_over:
                    self._is_busy.set()

    def _replaced(self, shift: _Shift) -> _Shift:
        """Leaves a thread that is stuck to its stream; returns the work of the one in its place."""
        with self._changed:
            stuck = shift.at
            if stuck is None or shift.is_over:
                return shift
            shift.own = stuck
            following = self._shift = _Shift()
            for stream, by in self._streams.items():
                if by is shift and stream is not stuck:
                    self._streams[stream] = following
            shift.is_over = stuck not in self._streams
        self._start(self._run, following)
        return following
