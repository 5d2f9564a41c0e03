"""kill -9 of a process with a log at any moment: what was acknowledged is there, once and whole."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from schemas.identity import digest
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.reliability.test_kills import drained
from tests.service import killed_log
from tests.service.logs import store_at

KILLS = size(8, 500)


@pytest.mark.timeout(size(300, 3600))
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(killed_log.PRELOAD)
    rng = random.Random(0)
    begun = time.perf_counter()
    acked: list[set[int]] = [set() for _ in range(killed_log.ACTORS)]
    for _ in range(KILLS):
        here, there = context.Pipe(duplex=False)
        firsts = [max(numbers, default=0) for numbers in acked]
        process = context.Process(target=killed_log.serve, args=(str(tmp_path), firsts, there))
        process.start()
        there.close()
        here.poll(60)  # until something is acknowledged, then a little longer
        time.sleep(rng.uniform(0, 0.2))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        for actor, number in drained(here):
            acked[int(actor)].add(number)
    count = judge(tmp_path, acked)
    assert count >= KILLS, "hardly anything was done between two kills"
    tell("kill -9 of a log", kills=KILLS, acknowledged=count, seconds=time.perf_counter() - begun)


def judge(root: Path, acked: list[set[int]]) -> int:
    """Holds what is left against what was acknowledged; returns how many that were."""
    with killed_log.open_log(root) as log:
        log.seal()
    version = store_at(root).version()
    found = Counter(version.episodes()["episode_id"].to_pylist())
    assert set(found.values()) == {1}, "an episode is there twice"
    for actor, numbers in enumerate(acked):
        mine = {int(name.split("-")[1]) for name in found if name.startswith(f"{actor}-")}
        assert numbers <= mine, f"acknowledged and lost: {sorted(numbers - mine)}"
        assert mine == set(range(max(mine, default=-1) + 1)), "an episode is there before its time"
    for one in version.iter_episodes():
        actor, number = map(int, one.episode_id.split("-"))
        assert digest(one) == digest(killed_log.rollout(actor, number))
    assert not [one for one in store_at(root).doctor().problems if one.is_damage]
    return sum(map(len, acked))
