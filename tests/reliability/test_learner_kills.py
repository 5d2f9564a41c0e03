"""kill -9 of a learner at any moment, while its data grow: it goes on as if nothing had been."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from learners.base import make_learner
from learners.checkpoint import load_checkpoint
from learners.data import Pinned, fit
from learners.runlog import read_table
from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from tests.reliability import learning
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.store.makers import episode

KILLS, STEPS = size(4, 60), size(300, 3000)


@pytest.fixture(scope="module")
def forkserver() -> ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(learning.PRELOAD)
    return context


def grow(store: Store, number: int) -> None:
    store.append([episode(f"e{number}-{k}", 12 + k) for k in range(3)])


@pytest.mark.timeout(size(900, 3600))
def test_a_killed_learner_goes_on_as_if_undisturbed(
    tmp_path: Path, forkserver: ForkServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    store = open_store(tmp_path / "s", create=True)
    grow(store, 0)
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = (store.url, str(out), STEPS, str(log), str(tmp_path / "cache"))
    chance = random.Random(STEPS)
    killed = 0
    while killed < KILLS:
        process = forkserver.Process(target=learning.learn, args=arguments)
        process.start()
        assert process.pid is not None
        # Soon after a batch, or at once: in the middle of the beginning, a checkpoint, a decision.
        before = len(learning.lines(log)) + chance.randrange(1, STEPS // KILLS)
        patience = chance.uniform(0.2, 20)
        # Every other life gets as far as its batch, however busy the machine is.
        until = time.monotonic() + (patience if killed % 2 else 120)
        while process.is_alive() and len(learning.lines(log)) < before:
            if time.monotonic() > until:
                break
            time.sleep(0.005)
        grow(store, killed + 1)
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break  # it came to its end
    last = forkserver.Process(target=learning.learn, args=arguments)
    last.start()
    last.join(size(300, 1200))
    assert last.exitcode == 0
    drawn = learning.lines(log)
    by_step = dict(drawn)
    assert killed >= KILLS // 2
    assert len(drawn) > STEPS  # some were learned from again
    assert sorted(by_step) == list(range(STEPS))
    assert set(drawn) == set(by_step.items()), "a step that was repeated had other rows"
    tell("learner kills", kills=killed, repeated=len(drawn) - STEPS)
    _same_as_undisturbed(store, out, by_step)


def _same_as_undisturbed(store: Store, out: Path, by_step: dict[int, str]) -> None:
    """Learns again from what the run decided to read, in one go."""
    checkpoint = load_checkpoint(out)
    config = checkpoint.document["config"]
    pinned = tuple(Pinned(**one) for one in checkpoint.document["data"])
    name = f"bc-{checkpoint.document['run'][:12]}"
    assert name in runs.runs(store.catalog)
    assert len({one.versions for one in runs.references(store.catalog, name)}) > 1
    stream = Stream(
        store.url, run=name, sampler="shuffle", batch_size=learning.BATCH, seed=learning.SEED
    )
    learner = make_learner("bc", config["settings"], fit(pinned, True), learning.SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in range(STEPS):
        batch = next(stream)
        assert learning.rows(batch) == by_step[step]
        learner.update(batch)
    torch.set_num_threads(threads)
    state = learner.state()
    assert state.keys() == checkpoint.tensors.keys()
    for tensor in state:
        assert torch.equal(state[tensor], checkpoint.tensors[tensor]), tensor
    logged = [int(row["step"]) for row in read_table(out / "metrics.csv")]
    assert logged == list(range(15, STEPS + 1, 15))
