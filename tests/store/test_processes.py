"""Real processes: racing writers lose nothing, and a killed one leaves nothing half done."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from pipeline.store.store import Store, open_store
from tests.store import workers
from tests.store.makers import episode, ids_of, quarantined
from tests.store.workers import BATCHES, OWN, SHARED, batch_ids, own_ids
from tests.strategies import assert_same_episode

KILLS = 20


@pytest.fixture(scope="module")
def forkserver() -> ForkServerContext:
    """Fresh processes that share one import of the libraries, and no state of this one."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(workers.PRELOAD)
    return context


def test_four_processes_create_append_and_race(
    tmp_path: Path, forkserver: ForkServerContext
) -> None:
    root = tmp_path / "s"
    barrier = forkserver.Barrier(4)
    pipes = [forkserver.Pipe(duplex=False) for _ in range(4)]
    processes = [
        forkserver.Process(target=workers.race, args=(str(root), number, barrier, pipe[1]))
        for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    reports = [pipe[0].recv() if pipe[0].poll(120) else "no report" for pipe in pipes]
    for process in processes:
        process.join(30)
    store = open_store(root)
    assert reports == [store.id] * 4, "no writer raises, and all made one store"
    expected = {name for w in range(4) for b in range(BATCHES) for name in own_ids(w, b)}
    expected |= {f"shared{number}" for number in range(SHARED)}
    found = Counter(ids_of(store.version()))
    assert found == Counter(expected)
    assert len(expected) == 4 * BATCHES * OWN + SHARED
    assert quarantined(store) == []
    for one in store.version().iter_episodes():
        assert_same_episode(one, episode(one.episode_id, 2))
    numbers = [version.number for version in store.log()]
    assert numbers == list(range(len(numbers), 0, -1))
    # Each writer's own batches came in the order it sent them.
    order = ids_of(store.version())
    for writer in range(4):
        sent = [name for batch in range(BATCHES) for name in own_ids(writer, batch)]
        assert [name for name in order if name.startswith(f"w{writer}-")] == sent


def test_kill_minus_nine(tmp_path: Path, forkserver: ForkServerContext) -> None:
    root = tmp_path / "s"
    rng = random.Random(0)
    open_store(root, create=True).append([episode("first")])
    acknowledged: set[int] = set()
    visible: set[int] = set()
    for _ in range(KILLS):
        first = max(visible, default=-1)  # the batch under way is offered again
        receiver, sender = forkserver.Pipe(duplex=False)
        process = forkserver.Process(
            target=workers.offer_for_ever, args=(str(root), max(first, 0), sender)
        )
        process.start()
        sender.close()
        for _ in range(rng.randint(2, 5)):  # the first two are of the batch that is there
            assert receiver.poll(60)
            acknowledged.add(receiver.recv())
        time.sleep(rng.uniform(0, 0.06))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        acknowledged |= drain(receiver)
        visible = check(open_store(root))
        assert acknowledged <= visible, "an acknowledged batch is lost"
    assert len(acknowledged) >= KILLS // 2
    # Everything that was written and never committed is still nobody's.
    store = open_store(root)
    store.append([episode("last")])
    assert check(store) == visible
    assert quarantined(store) == []


def drain(receiver: mp.connection.Connection) -> set[int]:
    """What a killed process had told; its last message may be cut short."""
    told: set[int] = set()
    try:
        while receiver.poll(0):
            told.add(receiver.recv())
    except (EOFError, OSError):
        pass
    receiver.close()
    return told


def check(store: Store) -> set[int]:
    """Returns the batches that are visible: each whole, each once, readable to the last bit."""
    found = ids_of(store.version())
    assert len(found) == len(set(found)), "an episode is there twice"
    batches = {int(name[1:].split("-")[0]) for name in found if name.startswith("b")}
    for batch in batches:
        assert set(batch_ids(batch)) <= set(found), "a batch is there in part"
    for one in store.version().iter_episodes(where="length == 3"):
        expected = episode(one.episode_id, 3)
        if one.rewards is None:
            expected = expected.replace(rewards=None)
        assert_same_episode(one, expected)
    return batches
