"""Spreading references over workers: small results home, a bounded number on the way, retries.

Nothing here knows what the work is. Any `concurrent.futures.Executor` can be the workers: processes
of this machine, or a Dask cluster through `Client.get_executor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import ParamSpec, TypeVar

from schemas.errors import DiskFullError, OutOfTimeError, TransientError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

ATTEMPTS = 3
PAUSE_SECONDS = 0.2
"""Before the second attempt; doubled before each further one."""


def spread(
    pool: Executor, function: Callable[[T], R], elements: Iterable[T], *, in_flight: int
) -> Iterator[R]:
    """Maps references to results on workers, in the order in which they are done.

    Args:
        pool: the workers.
        function: what a worker does; importable by name there.
        elements: references, asked for one at a time.
        in_flight: how many are handed out and not home yet, at most. It bounds what waits in the
            workers' memory, and what is done in vain if one of them ends the job.

    Raises:
        Exception: what `function` raised first; what is not begun then is never begun.
    """
    waiting: set[Future[R]] = set()
    rest = iter(elements)
    try:
        while True:
            for element in rest:
                waiting.add(pool.submit(function, element))
                if len(waiting) >= in_flight:
                    break
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()


def patiently(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls an idempotent function again, a few times, where it meets what may pass.

    Raises:
        TransientError: if it did not pass.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return function(*args, **kwargs)
        except (DiskFullError, OutOfTimeError):  # neither passes within a second
            raise
        except TransientError:
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return function(*args, **kwargs)
