"""Actors of the service's benchmark: a process of its own that pushes and says how long it took.

Run as `python -m pipeline.service.bench_actors ADDRESS ACTORS STEPS SECONDS WINDOW PACE`. With a
pace, the puts of each actor a second, a put comes when it is due, whether or not those before it
are acknowledged, and its wait begins when it was due; with 0 the window alone holds actors back.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections import deque
from concurrent.futures import Future

import numpy as np

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.outbox import Offset
from schemas.episode import Episode

OBSERVATION, ACTION = 17, 6


def rollout(steps: int, random: np.random.Generator) -> Episode:
    """Returns an episode of some steps: 17 observed numbers, 6 of actions, a reward (float32)."""
    return Episode(
        episode_id=uuid.uuid4().hex,
        observations={
            "observations": random.normal(size=(steps + 1, OBSERVATION)).astype(np.float32)
        },
        actions=random.normal(size=(steps, ACTION)).astype(np.float32),
        rewards=random.normal(size=steps).astype(np.float32),
        terminated=True,  # type: ignore[arg-type]
        kind="rollout",
    )


class Actor:
    """One actor's pushes."""

    def __init__(self, client: RolloutClient, steps: int, random: np.random.Generator) -> None:
        self.waits: list[float] = []
        """Seconds of each put until it was acknowledged."""
        self._client = client
        self._samples = [rollout(steps, random) for _ in range(16)]
        self._going: deque[Future[Offset]] = deque()
        self._pushed = 0
        self._client.push(self._samples[0])

    def push_on(self, seconds: float, window: int) -> None:
        """Pushes for some seconds, so many episodes at a time."""
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            self._push(now)
            if len(self._going) >= window:
                self._going.popleft().result()

    def push_at(self, seconds: float, pace: float, first: float) -> None:
        """Pushes so many episodes a second, the first one so many seconds from now."""
        begun = time.perf_counter() + first
        for number in range(round(seconds * pace)):
            due = begun + number / pace
            time.sleep(max(due - time.perf_counter(), 0.0))
            self._push(due)

    def finish(self) -> None:
        """Returns when all is acknowledged."""
        for future in self._going:
            future.result()

    def _push(self, begun: float) -> None:
        sample = self._samples[self._pushed % len(self._samples)]
        self._pushed += 1
        future = self._client.push_async(sample.replace(episode_id=uuid.uuid4().hex))
        future.add_done_callback(lambda _: self.waits.append(time.perf_counter() - begun))
        self._going.append(future)


def main(arguments: list[str]) -> None:
    """Runs some actors as threads; prints all their waits, and how long they took, as JSON."""
    address, *numbers = arguments
    actors, steps, window = (int(numbers[at]) for at in (0, 1, 3))
    seconds, pace = float(numbers[2]), float(numbers[4])
    waits: list[float] = []
    took: list[float] = []
    together = threading.Barrier(actors)

    def run(number: int) -> None:
        random = np.random.default_rng()
        with RolloutClient(address, put_bytes=4 << 20) as client:
            actor = Actor(client, steps, random)
            together.wait()
            begun = time.perf_counter()
            if pace:
                actor.push_at(seconds, pace, number / actors / pace)
            else:
                actor.push_on(seconds, window)
            actor.finish()
            took.append(time.perf_counter() - begun)
        waits.extend(actor.waits)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(actors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"waits": waits, "seconds": max(took)}))


if __name__ == "__main__":
    main(sys.argv[1:])
