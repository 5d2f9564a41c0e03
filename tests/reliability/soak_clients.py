"""The clients of a soak, each in its own process: actors at a steady pace, and a learner's tail."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.service.client.client import RolloutClient
from schemas.episode import Episode
from schemas.errors import PenstockError

STEPS, OBSERVED, ACTED, PUT_ROWS = 256, 17, 6, 64
PUT_BYTES = PUT_ROWS * 4 * (OBSERVED + ACTED + 1)
ON_THE_WAY = 32
"""Episodes of one actor that are not acknowledged."""


@dataclass(frozen=True)
class Wanted:
    """What every client is told."""

    address: str
    token: str
    peak_seconds: float
    """How long actors push as fast as they can."""
    share: float
    """Of that rate, for the rest of the time."""
    tell_every: float
    """Seconds between two messages."""


def name_of(actor: int, number: int) -> str:
    """The id of an actor's episode."""
    return f"soak-{actor}-{number}"


def episode_of(actor: int, number: int) -> Episode:
    """The episode of a number, the same whenever it is made."""
    observations = np.resize(np.arange(9973, dtype=np.float32), (STEPS + 1, OBSERVED)) + actor
    observations[:, 0] = number
    return Episode(
        name_of(actor, number),
        observations,
        observations[:-1, :ACTED] / 7,
        observations[:-1, 1] / 3,
        terminated=bool(number % 2),
        kind="rollout",
    )


def actor(which: int, wanted: Wanted, stop: Any, told: Any) -> None:
    """Pushes as fast as it can, then at a share of that rate, until it is told to stop."""
    try:
        with RolloutClient(
            wanted.address, wanted.token, producer=f"soak:actor-{which}", put_bytes=PUT_BYTES
        ) as client:
            _Actor(which, client, told, wanted).run(stop)
    except PenstockError as error:
        told.put({"failure": f"actor {which}: {error}"})


class _Actor:
    def __init__(self, which: int, client: RolloutClient, told: Any, wanted: Wanted) -> None:
        self._which, self._client, self._told, self._wanted = which, client, told, wanted
        self._room = threading.Semaphore(ON_THE_WAY)
        self._lock = threading.Lock()
        self._latencies: list[float] = []
        self._pushed = self._acknowledged = 0
        self._tell_at = 0.0

    def run(self, stop: Any) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < self._wanted.peak_seconds:
            self._push()
        rate = self._pushed / (time.monotonic() - begun)
        self._tell(peak=rate)
        due = time.monotonic()
        while not stop.is_set():
            due = max(due + 1 / (rate * self._wanted.share), time.monotonic() - 1)
            time.sleep(max(due - time.monotonic(), 0))
            self._push()
            if time.monotonic() >= self._tell_at:
                self._tell()
        self._client.flush(120)
        self._tell(is_over=True)

    def _push(self) -> None:
        one = episode_of(self._which, self._pushed)
        self._room.acquire()
        at = time.perf_counter()
        future = self._client.push_async(one)
        self._pushed += 1
        future.add_done_callback(lambda done: self._done(done, at))

    def _done(self, done: Future[Any], at: float) -> None:
        self._room.release()
        error = done.exception()
        if error is not None:
            self._told.put({"failure": f"actor {self._which}: {error}"})
            return
        with self._lock:
            self._acknowledged += 1
            self._latencies.append((time.perf_counter() - at) * 1e3)

    def _tell(self, **more: Any) -> None:
        with self._lock:
            latencies, self._latencies = self._latencies, []
            counts = {"pushed": self._pushed, "acknowledged": self._acknowledged}
        self._told.put({"actor": self._which, "latencies": latencies, **counts, **more})
        self._tell_at = time.monotonic() + self._wanted.tell_every


def learner(wanted: Wanted, wait_seconds: float, over: Any, told: Any) -> None:
    """Receives every episode; once actors are over, until none comes any more."""
    seen: set[str] = set()
    doubled = 0
    place: dict[str, Any] = {}
    tell_at = time.monotonic() + wanted.tell_every
    try:
        with RolloutClient(wanted.address, wanted.token) as client:
            is_last = False
            while not is_last:
                is_last = over.is_set()
                came: Counter[str] = Counter()
                for one in client.tail(follow=not is_last, wait_seconds=wait_seconds, **place):
                    came[one.episode.episode_id] += 1
                    place = {"after": one.offset, "server": one.server}
                    if time.monotonic() >= tell_at:
                        told.put({"received": len(seen | came.keys())})
                        tell_at = time.monotonic() + wanted.tell_every
                seen |= came.keys()
                doubled += sum(count > 1 for count in came.values())
    except PenstockError as error:
        told.put({"failure": f"learner: {error}"})
    told.put({"received": len(seen), "seen": sorted(seen), "doubled": doubled})
