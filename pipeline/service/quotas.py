"""What each token uses at the moment, held against its quota.

It is kept in memory: a restart forgets it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.service.tokens import Token
from schemas.errors import BusyError

BURST_SECONDS = 5.0
"""What a token did not send for so long it may send at once."""
OPEN_TO_ALL = ""
"""Stands for the token of a service without tokens."""


@dataclass
class _Use:
    """What one token uses."""

    streams: int = 0
    credit: float = 0.0  # bytes it may send at once
    at: float = 0.0  # seconds, when the credit was reckoned
    unsealed: deque[tuple[int, int]] = field(default_factory=deque)
    """Offsets in the log and bytes of what it pushed that may not be sealed."""
    unsealed_bytes: int = 0


class Quotas:
    """The use of all tokens; safe to use from several threads."""

    def __init__(
        self,
        max_streams: int,
        max_buffered_bytes: int = 512 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sets what all tokens may use together.

        Args:
            max_streams: open at a time.
            max_buffered_bytes: of bodies on their way in.
            clock: in seconds.
        """
        self._max_streams = max_streams
        self._max_buffered = max_buffered_bytes
        self._buffered = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, _Use] = {}
        self._open = 0

    @contextlib.contextmanager
    def stream(self, token: Token | None) -> Iterator[None]:
        """Counts an open stream while the context lasts.

        Raises:
            BusyError: if the token, or all together, have as many open as they may.
        """
        with self._lock:
            use = self._use(token)
            limit = token.quota.max_streams if token is not None else None
            if limit is not None and use.streams >= limit:
                raise BusyError(
                    f"Expected at most {limit} open streams of this token, came another; close "
                    f"one first."
                )
            if self._open >= self._max_streams:
                raise BusyError(
                    f"Expected at most {self._max_streams} open streams, came another; try again "
                    f"later.",
                    retry_after=5.0,
                )
            use.streams += 1
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                use.streams -= 1
                self._open -= 1

    @contextlib.contextmanager
    def buffer(self, count: int) -> Iterator[None]:
        """Sets memory aside for a body while the context lasts.

        Raises:
            BusyError: if others have it.
        """
        with self._lock:
            if self._buffered + count > max(self._max_buffered, count):
                raise BusyError(
                    f"Expected at most {self._max_buffered:,} bytes of bodies on their way, came "
                    f"{count:,} more; try again later."
                )
            self._buffered += count
        try:
            yield
        finally:
            with self._lock:
                self._buffered -= count

    def spend(self, token: Token | None, count: int) -> None:
        """Takes some bytes off what a token may send now.

        A single put larger than the credit ever gets is let in when the credit is full, so that
        the mean holds and nobody waits for ever.

        Raises:
            BusyError: if that is used up; it says when it will not be.
        """
        rate = token.quota.bytes_per_second if token is not None else None
        if rate is None:
            return
        with self._lock:
            use, now, most = self._use(token), self._clock(), rate * BURST_SECONDS
            use.credit = min(most, use.credit + rate * (now - use.at)) if use.at else most
            use.at = now
            if use.credit < min(count, most):
                wait = (min(count, most) - use.credit) / rate
                raise BusyError(
                    f"Expected at most {rate:,} bytes a second of this token, came more; try "
                    f"again in {wait:.1f} s.",
                    retry_after=wait,
                )
            use.credit -= count

    def pushed(self, token: Token | None, offset: int, count: int) -> None:
        """Remembers what a token pushed, for `check_unsealed`, until it is sealed."""
        if token is None or token.quota.unsealed_bytes is None:
            return
        with self._lock:
            use = self._use(token)
            use.unsealed.append((offset, count))
            use.unsealed_bytes += count

    def check_unsealed(self, token: Token | None, sealed_through: int) -> None:
        """Holds what a token pushed since the start that no version has yet against its quota.

        Raises:
            BusyError: if it is as much as it may be.
        """
        limit = token.quota.unsealed_bytes if token is not None else None
        if limit is None:
            return
        with self._lock:
            use = self._use(token)
            while use.unsealed and use.unsealed[0][0] <= sealed_through:
                use.unsealed_bytes -= use.unsealed.popleft()[1]
            if use.unsealed_bytes >= limit:
                raise BusyError(
                    f"Expected fewer than {limit:,} bytes of this token that are not sealed yet, "
                    f"came {use.unsealed_bytes:,}; try again after the next seal.",
                    retry_after=5.0,
                )

    @property
    def open_streams(self) -> int:
        """How many streams are open now."""
        return self._open

    def _use(self, token: Token | None) -> _Use:
        return self._used.setdefault(token.id if token is not None else OPEN_TO_ALL, _Use())
