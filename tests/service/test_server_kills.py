"""kill -9 of real servers while actors push: what was acknowledged is there, once and whole."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import PenstockError
from schemas.identity import digest
from tests.episodes import episode
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service import killed_servers

KILLS = size(6, 500)
ACTORS = 3


def rollout(actor: int, number: int) -> Episode:
    return episode(f"{actor}-{number}", length=4 + number % 20, kind="rollout")


def start(root: Path, wal: str = "wal", **settings: Any) -> tuple[BaseProcess, dict[str, str]]:
    """Starts a server in a process that can be killed; returns it with its addresses."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(killed_servers.PRELOAD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=killed_servers.serve_in, args=(str(root), wal, settings, there)
    )
    process.start()
    there.close()
    return process, here.recv()


@contextmanager
def ended(process: BaseProcess) -> Iterator[None]:
    """Ends a server gracefully after the context."""
    try:
        yield
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


class Actor:
    """Pushes episode after episode for as long as it may, whatever happens to the server."""

    def __init__(self, name: int, port: int, is_over: threading.Event) -> None:
        self.acked: list[int] = []
        self.error: Exception | None = None
        self._name = name
        self._port = port
        self._is_over = is_over
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        address = f"grpc://127.0.0.1:{self._port}"
        try:
            with RolloutClient(
                address, producer=f"actor-{self._name}", put_bytes=200, retry_seconds=None
            ) as client:
                for number in itertools.count():
                    if self._is_over.is_set():
                        return
                    client.push(rollout(self._name, number))
                    self.acked.append(number)
        except PenstockError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.mark.timeout(size(300, 3600))
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = random.Random(0)
    begun = time.perf_counter()
    port = killed_servers.free_port()
    is_over = threading.Event()
    actors = [Actor(k, port, is_over) for k in range(ACTORS)]
    for _ in range(KILLS):
        process, _ = start(tmp_path, port=port)
        before = sum(len(actor.acked) for actor in actors)
        until = time.monotonic() + 60
        while sum(len(a.acked) for a in actors) == before and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
    process, _ = start(tmp_path, port=port)
    with ended(process):
        is_over.set()
        for actor in actors:
            actor.join()
    count = sum(len(actor.acked) for actor in actors)
    assert count >= KILLS
    for actor in range(ACTORS):
        judge(open_store(tmp_path / "store"), actor, actors[actor].acked)
    assert not [p for p in open_store(tmp_path / "store").doctor().problems if p.is_damage]
    tell(
        "kill -9 of a server", kills=KILLS, acknowledged=count, seconds=time.perf_counter() - begun
    )


def judge(store: Store, actor: int, acked: list[int]) -> None:
    """Holds what is in the store against what was acknowledged to one actor."""
    ids = store.version().episodes()["episode_id"].to_pylist()
    assert set(Counter(ids).values()) == {1}, "an episode is there twice"
    mine = {int(name.split("-")[1]) for name in ids if name.startswith(f"{actor}-")}
    assert set(acked) <= mine, f"acknowledged and lost: {sorted(set(acked) - mine)}"
    assert mine == set(range(len(mine)))
    for one in store.version().iter_episodes(f"episode_id like '{actor}-%'"):
        assert digest(one) == digest(rollout(actor, int(one.episode_id.split("-")[1])))


def test_another_server_goes_on_amid_an_episode(tmp_path: Path) -> None:
    """The whole open episode is sent again, to a server with a log of its own."""
    first, at_first = start(tmp_path, "wal-1", port=0)
    second, at_second = start(tmp_path, "wal-2", port=0)
    source = rollout(0, 19)
    observations, actions = source.observations["observations"], source.actions
    with (
        ended(second),
        RolloutClient([at_first["data"], at_second["data"]], put_bytes=64) as client,
    ):
        served_by = client.push(rollout(0, 0)).server
        with client.episode("moved") as going:
            for t in range(source.length):
                going.add(observations[t], actions[t], source.rewards[t])
                if t == source.length // 2:
                    first.kill()
                    first.join()
            offset = going.end(observations[-1], terminated=True).result(60)
        assert offset.server != served_by
        assert client.push(rollout(0, 0)), "pushed again, to be sure"
    # The first log goes on, too: what it had of the open episode is never sealed.
    first, _ = start(tmp_path, "wal-1", port=0)
    with ended(first):
        pass
    found = open_store(tmp_path / "store").version()
    assert sorted(found.episodes()["episode_id"].to_pylist()) == ["0-0", "moved"]
    moved = found.episode("moved")
    assert moved.length == source.length
    assert (moved.observations["observations"] == observations).all()


def test_a_client_does_not_wait_for_ever(tmp_path: Path) -> None:
    process, at = start(tmp_path, port=0)
    process.kill()
    process.join()
    with (
        RolloutClient(at["data"], retry_seconds=2.0) as client,
        pytest.raises(PenstockError, match="the last error was") as caught,
    ):
        client.push(rollout(0, 0))
    assert caught.value.kind == "timeout"
