"""kill -9 of real writers and a maintainer at any moment: what was acknowledged is there, once."""

from __future__ import annotations

import datetime as dt
import multiprocessing as mp
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipeline.store.store import Store, open_store
from schemas.identity import digest
from tests.reliability import killed
from tests.reliability.figures import tell
from tests.reliability.sizes import size

KILLS = size(15, 500)


@pytest.fixture(scope="module")
def forkserver() -> ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(killed.PRELOAD)
    return context


@dataclass
class Worker:
    """One process after another that does the same."""

    context: ForkServerContext
    root: Path
    work: Callable[[str, int, Connection], None]
    acknowledged: dict[str, set[int]] = field(
        default_factory=lambda: {"batch": set(), "tag": set()}
    )
    process: BaseProcess | None = None
    told: Connection | None = None

    def start(self) -> None:
        """Begins with the batch that was acknowledged last: it is offered again."""
        self.told, told = self.context.Pipe(duplex=False)
        first = max(self.acknowledged["batch"], default=0)
        process = self.context.Process(target=self.work, args=(str(self.root), first, told))
        process.start()
        told.close()
        self.process = process

    def kill(self) -> None:
        assert self.process is not None
        assert self.told is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(30)
        assert self.process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        for what, number in drained(self.told):
            self.acknowledged[what].add(number)

    def wait_for_one(self) -> None:
        """Waits until it says that a batch is in that it had not said before."""
        assert self.told is not None
        known = len(self.acknowledged["batch"])
        while len(self.acknowledged["batch"]) == known:
            assert self.told.poll(60), "a writer writes nothing"
            what, number = self.told.recv()
            self.acknowledged[what].add(number)


def drained(told: Connection) -> Iterator[tuple[str, int]]:
    try:
        while told.poll(0):
            yield told.recv()
    except (EOFError, OSError):
        pass  # killed in the middle of a message
    told.close()


def test_nothing_acknowledged_is_lost(tmp_path: Path, forkserver: ForkServerContext) -> None:
    root = tmp_path / "s"
    rng = random.Random(0)
    begun = time.perf_counter()
    open_store(root, create=True).append(killed.batch(0))
    works = (killed.write, killed.write, killed.maintain)
    workers = [Worker(forkserver, root, work) for work in works]
    writers = workers[:2]
    for worker in workers:
        worker.start()
    for number in range(KILLS):
        time.sleep(rng.uniform(0.02, size(250, 120) / 1000))
        if number % 5 == 0:
            rng.choice(writers).wait_for_one()
        worker = rng.choice(workers)
        worker.kill()
        if number % 50 == 49:
            judge(open_store(root), workers)
        worker.start()
    for worker in workers:
        worker.kill()
    batches = judge(open_store(root), workers)
    acknowledged = set().union(*(worker.acknowledged["batch"] for worker in workers))
    assert len(acknowledged) >= KILLS // 5, "hardly anything was done between two kills"
    finish(root, batches)
    tell(
        "kill -9",
        kills=KILLS,
        acknowledged=len(acknowledged) * killed.SIZE,
        seconds=time.perf_counter() - begun,
    )


def judge(store: Store, workers: list[Worker]) -> set[int]:
    """Returns the visible batches: each whole and once, the acknowledged ones among them."""
    found = Counter(store.version().episodes()["episode_id"].to_pylist())
    assert set(found.values()) == {1}, "an episode is there twice"
    batches = {int(name[1:].split("-")[0]) for name in found}
    whole = {f"b{number}-e{k}" for number in batches for k in range(killed.SIZE)}
    assert set(found) == whole, "a batch is there in part"
    for worker in workers:
        assert worker.acknowledged["batch"] <= batches, "an acknowledged batch is lost"
        named = {f"t{number}" for number in worker.acknowledged["tag"]}
        assert named <= set(store.tags()), "an acknowledged tag is lost"
    return batches


def finish(root: Path, batches: set[int]) -> None:
    """Everything is offered once more, put together and collected: the same is left."""
    store = open_store(root)
    for number in range(max(batches) + 1):
        store.append(killed.batch(number))
    killed.end_turns(store)
    store.compact(everything=True)
    for _ in range(2):
        store.gc(dt.timedelta(0))
    again = open_store(root)
    assert again.doctor().problems == []
    expected = {one.episode_id: one for n in range(max(batches) + 1) for one in killed.batch(n)}
    found = list(again.version().iter_episodes())
    assert sorted(one.episode_id for one in found) == sorted(expected)
    for one in found:
        assert digest(one) == digest(expected[one.episode_id])
