"""Learners that say where they are: figures for the metrics, and a limit for what is inserted.

A heartbeat holds good for a while and is forgotten then, so that a learner that died holds nobody
up. Of several learners the one that wants the least sets the limit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.service.metrics import ServiceMetrics
from pipeline.service.seal import Sealed
from schemas.errors import BusyError, TooLargeError
from schemas.online import Heartbeat

MAX_LEARNERS = 64
REMEMBERED_SEALS = 4096
WAIT_SECONDS = 0.5
"""What actors are told to wait for before they ask again."""


@dataclass(frozen=True)
class _Told:
    beat: Heartbeat
    until: float


class Learners:
    """The learners that are heard of."""

    def __init__(
        self, metrics: ServiceMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        self._sealed: deque[tuple[int, int]] = deque([(0, 0)], REMEMBERED_SEALS)
        """Versions of the branch that this log's seals made, with all steps sealed until then."""
        metrics.follow(metrics.learner_staleness, self.staleness)
        metrics.follow(metrics.sample_insert_ratio, self.ratio)

    def beat(self, run: str, beat: Heartbeat) -> None:
        """Takes a heartbeat.

        Raises:
            TooLargeError: if there are too many learners.
        """
        with self._lock:
            live = self._live()
            if run not in live and len(live) >= MAX_LEARNERS:
                raise TooLargeError(f"Expected at most {MAX_LEARNERS} learners, came another.")
            self._told = {**live, run: _Told(beat, self._clock() + beat.valid_seconds)}
        if beat.pull_wait_seconds:
            self._metrics.pull_wait.observe(beat.pull_wait_seconds)

    def told(self) -> dict[str, Heartbeat]:
        """Returns the heartbeats that hold good."""
        with self._lock:
            return {run: told.beat for run, told in self._live().items()}

    def staleness(self) -> float:
        """Returns how many versions the learner furthest behind lags."""
        return float(max((beat.versions_behind for beat in self.told().values()), default=0))

    def ratio(self) -> float:
        """Returns samples for each inserted step, of all learners together."""
        beats = self.told().values()
        inserted = sum(beat.inserted for beat in beats)
        return sum(beat.samples for beat in beats) / inserted if inserted else 0.0

    def sealed(self, done: Sealed) -> None:
        """Hears of a seal."""
        with self._lock:
            self._sealed.append((done.version.number, self._sealed[-1][1] + done.steps))

    def check(self, unsealed_steps: Callable[[], int]) -> None:
        """Makes sure that an episode may begin.

        Args:
            unsealed_steps: returns the steps in the log that are in no version yet.

        Raises:
            BusyError: while a learner has as many as it wants.
        """
        limits = [(run, beat) for run, beat in self.told().items() if beat.insert_room is not None]
        if not limits:
            return
        waiting = unsealed_steps()
        for run, beat in limits:
            came = waiting + self._sealed_since(beat.room_since)
            room = beat.insert_room
            if room is not None and came >= room:
                raise BusyError(
                    f"Expected fewer than {room:,} steps that the learner {run!r} has not counted, "
                    f"came {came:,}; it takes more when it has drawn from those.",
                    retry_after=WAIT_SECONDS,
                    where=run,
                )

    def _sealed_since(self, number: int) -> int:
        with self._lock:
            before = [steps for at, steps in self._sealed if at <= number]
            return self._sealed[-1][1] - max(before, default=self._sealed[0][1])

    def _live(self) -> dict[str, _Told]:
        now = self._clock()
        return {run: told for run, told in self._told.items() if told.until > now}
