"""Running a job again and again in the foreground, for people without a scheduler."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from pipeline.jobs.events import tell

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LONGEST_SECONDS = 3600.0
"""Of one look at the pipe, which takes no more than some weeks."""


class Stop:
    """Whether to stop, said by signals; used in the main thread alone.

    No event does: its lock may be held by the very code that a signal interrupts, and a signal that
    reaches another thread does not end the main thread's wait. So the signal itself writes to a
    pipe, in whichever thread it comes, and the wait is for that pipe.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._is_told = self._is_seen = False

    def is_set(self) -> bool:
        """True once a signal came."""
        return self._is_told or self._is_seen

    def wait(self, seconds: float) -> bool:
        """Returns after so many seconds, or at once when a signal comes: True if one did."""
        until = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            # From here on a signal is either told already or leaves its number in the pipe.
            while not self.is_set() and (left := until - time.monotonic()) > 0:
                if waiting.poll(min(left, _LONGEST_SECONDS) * 1000):
                    came = os.read(self._reader, 4096)
                    self._is_seen = any(number in came for number in _SIGNALS)
        finally:
            signal.set_wakeup_fd(before)
        return self.is_set()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Stops; interrupts at once if asked again."""
        if self._is_told:
            raise KeyboardInterrupt
        self._is_told = True

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._reader)
        os.close(self._writer)


def repeat(run_once: Callable[[], int], every: float, stop: Stop) -> None:
    """Calls a run, waits, and calls it again, until told to stop.

    Args:
        run_once: returns what the run would exit with; raises for bugs only.
        every: seconds from the end of one run to the start of the next.
        stop: ends the wait at once, or the loop after the run under way.
    """
    while not stop.is_set():
        code = run_once()
        tell("ended", exit_code=code, next_run_seconds=None if stop.is_set() else every)
        stop.wait(every)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Yields what SIGTERM or SIGINT set; a second one interrupts at once."""
    stop = Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
