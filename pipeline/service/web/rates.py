"""How fast rollouts come in: the service's own counters, looked at when somebody watches.

Nothing runs while nobody does; watchers share the looks, which are at least half a second apart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client.metrics import MetricWrapperBase

from pipeline.service.metrics import ServiceMetrics

WINDOW = 10.0
"""Seconds that a rate is a mean over."""
KEPT = 120
"""Looks that are remembered, for a line."""
APART = 0.5
"""Seconds between looks."""


@dataclass(frozen=True)
class Look:
    """Counters at one moment."""

    at: float
    puts: float
    steps: float
    put_bytes: float
    refused: float
    syncs: float
    sync_seconds: float


@dataclass(frozen=True)
class Rates:
    """Per second, over the last seconds; None where nobody had looked before."""

    puts: float | None = None
    steps: float | None = None
    bytes: float | None = None
    refused: float | None = None
    sync_seconds: float | None = None
    """Mean of one fdatasync; None if there was none."""
    over: float = 0.0
    """Seconds."""
    history: tuple[float, ...] = ()
    """Steps per second between looks, the oldest first."""


class Watch:
    """Looks at the counters; safe to use from several threads."""

    def __init__(
        self, metrics: ServiceMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: the counters, and a clock in seconds."""
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: deque[Look] = deque(maxlen=KEPT)

    def rates(self) -> Rates:
        """Looks, and returns the rates since a look some seconds ago."""
        with self._lock:
            now = self._clock()
            if not self._looks or now - self._looks[-1].at >= APART:
                self._looks.append(self._look(now))
            looks = list(self._looks)
        last = looks[-1]
        first = next((one for one in looks if last.at - one.at <= WINDOW), last)
        if first is last and len(looks) > 1:
            first = looks[-2]
        over = last.at - first.at
        if over <= 0:
            return Rates()
        syncs = last.syncs - first.syncs
        return Rates(
            puts=(last.puts - first.puts) / over,
            steps=(last.steps - first.steps) / over,
            bytes=(last.put_bytes - first.put_bytes) / over,
            refused=(last.refused - first.refused) / over,
            sync_seconds=(last.sync_seconds - first.sync_seconds) / syncs if syncs else None,
            over=over,
            history=tuple((b.steps - a.steps) / (b.at - a.at) for a, b in pairwise(looks)),
        )

    def _look(self, now: float) -> Look:
        known = self._metrics
        return Look(
            at=now,
            puts=_sum(known.put_ack, "_count"),
            steps=_sum(known.put_steps, "_total"),
            put_bytes=_sum(known.put_bytes, "_total"),
            refused=_sum(known.put_rejected, "_total"),
            syncs=_sum(known.wal_fsync, "_count"),
            sync_seconds=_sum(known.wal_fsync, "_sum"),
        )


def _sum(metric: MetricWrapperBase, ending: str) -> float:
    """A counter over all its labels."""
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(ending)
    )
