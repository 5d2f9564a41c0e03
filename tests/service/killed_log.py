"""What the killed processes do: actors and a log that seals; importable without the tests."""

from __future__ import annotations

import itertools
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.service.intake import IntakeConfig
from pipeline.service.rollout_log import RolloutLog, RolloutLogConfig
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.puts import puts_of
from tests.episodes import episode

PRELOAD = ["tests.service.killed_log"]
ACTORS = 3


def rollout(actor: int, number: int) -> Episode:
    return episode(f"{actor}-{number}", length=4 + number % 5, kind="rollout")


def open_log(root: Path) -> RolloutLog:
    store = open_store(root / "store", create=True)
    config = RolloutLogConfig(
        root / "wal",
        seal_every=0.05,
        disk_reserve_bytes=0,
        intake=IntakeConfig(segment_bytes=20_000),
    )
    return RolloutLog(store, config)


def serve(root: str, firsts: list[int], told: Connection) -> None:
    """Actors push episode after episode, beginning with one that may be there, and say so."""
    log = open_log(Path(root))
    one_at_a_time = threading.Lock()

    def act(actor: int) -> None:
        epoch = time.time_ns()
        sequence = 0
        for number in itertools.count(firsts[actor]):
            whole = rollout(actor, number)
            puts = list(
                puts_of(whole, producer=f"a{actor}", epoch=epoch, sequence=sequence, put_bytes=100)
            )
            if number % 4 == 3:  # the connection breaks off, the episode is sent again
                log.wait(log.put(puts[0].header, puts[0].rows))
                epoch, sequence = time.time_ns(), 0
                puts = list(puts_of(whole, producer=f"a{actor}", epoch=epoch, put_bytes=100))
            log.push(puts)
            sequence = puts[-1].header.sequence + 1
            with one_at_a_time:
                told.send((actor, number))

    threads = [threading.Thread(target=act, args=(actor,)) for actor in range(ACTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
