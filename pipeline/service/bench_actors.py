"""Actors of the service's benchmark: a process of its own that pushes and says how long it took.

Run as `python -m pipeline.service.bench_actors ADDRESS ACTORS STEPS SECONDS WINDOW`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections import deque
from concurrent.futures import Future
from functools import partial

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


def act(address: str, steps: int, seconds: float, window: int) -> list[float]:
    """Pushes episodes for some seconds, so many at a time; returns seconds from push to ack."""
    random = np.random.default_rng()
    samples = [rollout(steps, random) for _ in range(16)]
    waits: list[float] = []
    going: deque[tuple[float, Future[Offset]]] = deque()
    with RolloutClient(address, put_bytes=4 << 20) as client:
        client.push(rollout(steps, random))
        until, number = time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            one = samples[number % len(samples)].replace(episode_id=uuid.uuid4().hex)
            number += 1
            begun = time.perf_counter()
            future = client.push_async(one)
            future.add_done_callback(partial(_note, waits, begun))
            going.append((begun, future))
            if len(going) >= window:
                going.popleft()[1].result()
        while going:
            going.popleft()[1].result()
    return waits


def _note(waits: list[float], begun: float, _: Future[Offset]) -> None:
    waits.append(time.perf_counter() - begun)


def main(arguments: list[str]) -> None:
    """Runs some actors as threads; prints all their waits as JSON."""
    address, actors, steps, seconds, window = arguments
    waits: list[float] = []

    def run() -> None:
        waits.extend(act(address, int(steps), float(seconds), int(window)))

    threads = [threading.Thread(target=run) for _ in range(int(actors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(waits))


if __name__ == "__main__":
    main(sys.argv[1:])
