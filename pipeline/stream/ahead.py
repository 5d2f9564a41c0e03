"""Gathers made ahead by one thread, while the learner computes.

The order is a pure function of the step, so what is made ahead is what would have been made, and
may be thrown away at any time: after another version was followed, a state loaded, a fork.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Made = TypeVar("Made")
Make = Callable[[int], tuple[int, Made]]
"""Makes the gather of a step: how many steps it holds, and what they are."""


class Ahead(Generic[Made]):
    """Makes one gather after the other, up to some ahead of who takes them.

    Args:
        depth: how many gathers are made ahead; 0 makes each when it is asked for, without a thread.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._coming: deque[Future[tuple[int, Made]]] = deque()
        self._next: int | None = None
        """Step of the first that is coming; None if nothing is."""
        self._line: _Line[Made] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._process = 0

    def take(self, step: int, make: Make[Made], begin: Callable[[], Make[Made]]) -> Made:
        """Returns the gather of a step, waiting for it where it is not there yet.

        What making it raises is raised here; the next call tries again.

        Args:
            step: the next one, or any other: then what was made ahead is dropped.
            make: makes a gather in the caller's own thread.
            begin: returns what does so in the other; it must not hold the owner of this object.
        """
        if self.depth == 0:
            return make(step)[1]
        if step != self._next or self._process != os.getpid():
            self.drop()
            self._line, self._next = _Line(begin(), step), step
        try:
            self._fill()
            steps, made = self._coming[0].result()
        except Exception:
            self.drop()
            raise
        self._coming.popleft()
        self._next = step + steps
        return made

    def drop(self) -> None:
        """Forgets what was made ahead; afterwards nothing is being made."""
        if self._process == os.getpid():
            running = [one for one in self._coming if not one.cancel()]
            wait(running)
        else:  # forked: the thread, and the locks that it may hold, are the parent's
            self._thread = None
        self._coming = deque()
        self._line = self._next = None

    def close(self) -> None:
        """Ends the thread; the next `take` begins another."""
        self.drop()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _fill(self) -> None:
        """Asks for as many gathers as are wanted, the one that is waited for among them."""
        line = self._line
        assert line is not None, "begun by take"
        if self._thread is None:
            # Joined at the interpreter's exit, as a daemon would not be.
            self._thread, self._process = ThreadPoolExecutor(1, "penstock-ahead"), os.getpid()
            weakref.finalize(self, _end, self._thread, self._process)
        while len(self._coming) <= self.depth:
            self._coming.append(self._thread.submit(line.make_next))


class _Line(Generic[Made]):
    """Makes gathers one after the other; in one thread alone."""

    def __init__(self, make: Make[Made], step: int) -> None:
        self._make, self._step = make, step

    def make_next(self) -> tuple[int, Made]:
        """Makes the next gather; one that failed is tried again."""
        steps, made = self._make(self._step)
        self._step += steps
        return steps, made


def _end(thread: ThreadPoolExecutor, process: int) -> None:
    if process == os.getpid():
        thread.shutdown(wait=False, cancel_futures=True)
