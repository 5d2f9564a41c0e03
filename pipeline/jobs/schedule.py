"""Running a job again and again in the foreground, for people without a scheduler."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pipeline.jobs.events import tell


def repeat(run_once: Callable[[], int], every: float, stop: threading.Event) -> None:
    """Calls a run, waits, and calls it again, until told to stop.

    Args:
        run_once: returns what the run would exit with; raises for bugs only.
        every: seconds from the end of one run to the start of the next.
        stop: ends the wait, or the loop after the run under way.
    """
    while not stop.is_set():
        code = run_once()
        tell("ended", exit_code=code, next_run_seconds=None if stop.is_set() else every)
        stop.wait(every)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM or SIGINT sets; a second one interrupts at once."""
    stop = threading.Event()

    def told(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
