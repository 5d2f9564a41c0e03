"""Worker processes of this machine; where one dies, new ones take up what is not home."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from pipeline.jobs.spread import ATTEMPTS, spread
from schemas.errors import TransientError

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 2
"""Elements on the way per process."""


class Processes:
    """Some worker processes, kept for as long as the context lasts."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def map(self, function: Callable[[T], R], elements: Sequence[T]) -> Iterator[R]:
        """Yields what a function makes of some elements, in the order in which they are done.

        Raises:
            TransientError: if processes keep dying.
        """
        waiting = dict(enumerate(elements))
        for _ in range(ATTEMPTS):
            try:
                found = spread(
                    self._start(),
                    functools.partial(_numbered, function),
                    list(waiting.items()),
                    in_flight=IN_FLIGHT * self._count,
                )
                for index, outcome in found:
                    del waiting[index]
                    yield outcome
            except BrokenProcessPool:
                self._end()
                continue
            return
        raise TransientError(
            "Worker processes kept dying. If memory is short, use fewer; a script that starts them "
            "does so below `if __name__ == '__main__':`. Nothing is committed; run it again."
        )

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not by fork: a copy of a process with threads (Zarr's, Arrow's) may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, mp_context=context)
        return self._pool

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _numbered(function: Callable[[T], R], element: tuple[int, T]) -> tuple[int, R]:
    index, one = element
    return index, function(one)
