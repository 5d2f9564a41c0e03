"""Real processes on one store in S3: racing one another, and killed between data and commit."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from pipeline.store.store import open_store
from tests.episodes import episode
from tests.store.remote_fixtures import Bucket
from tests.store.remote_writer import offered
from tests.store.servers import Request, Trouble
from tests.store.test_remote_contract import ids

PROCESSES, BATCHES, EPISODES = 4, 5, 250


def start(bucket: Bucket, who: str, batches: int, episodes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.remote_writer", bucket.url, who]
    return subprocess.Popen(
        [*command, str(batches), str(episodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_racing_processes_lose_nothing_and_store_nothing_twice(bucket: Bucket) -> None:
    open_store(bucket.url, create=True)
    names = [f"w{n}" for n in range(PROCESSES)]
    writers = [start(bucket, who, BATCHES, EPISODES) for who in names]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    outputs = _together(writers)
    assert [writer.returncode for writer in writers] == [0] * PROCESSES
    assert all(len(output.split()) == BATCHES for output in outputs)
    store = open_store(bucket.url)
    found = ids(store)
    own = {f"{w}-{b}-{n}" for w in names for b in range(BATCHES) for n in range(EPISODES)}
    shared = {f"all-{b}-{n}" for b in range(BATCHES) for n in range(10)}
    assert len(own) == 5_000
    assert len(found) == len(set(found))
    assert set(found) == own | shared
    assert len(store.log()) == PROCESSES * BATCHES
    assert len(store.quarantine()) == 0


def test_a_writer_killed_before_its_commit_leaves_nothing_to_see(bucket: Bucket) -> None:
    store = open_store(bucket.url, create=True)
    store.append([episode("before")])
    data = len(list(store.catalog.objects.entries("tails")))
    reached, killed = threading.Event(), threading.Event()

    def trouble(request: Request) -> Trouble | None:
        if request.is_commit and not killed.is_set():
            reached.set()  # its data are durable; the commit is held back until it is dead
            killed.wait(60)
            return Trouble(answer=(503, "SlowDown"))
        return None

    bucket.proxy.trouble = trouble
    writer = start(bucket, "killed", 1, 3)
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("go\n")
    writer.stdin.flush()
    assert reached.wait(60)
    writer.kill()
    writer.communicate()
    killed.set()
    assert writer.returncode == -signal.SIGKILL
    assert ids(open_store(bucket.url)) == ["before"]
    assert len(list(store.catalog.objects.entries("tails"))) == data + 1
    assert open_store(bucket.url).append(offered("killed", 0, 3)).number == 2
    assert len(ids(open_store(bucket.url))) == 1 + 3 + 10


def _together(writers: list[subprocess.Popen[str]]) -> list[str]:
    """Lets the writers go at once and waits for them all; returns what they said."""
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return [writer.communicate(timeout=120)[0] for writer in writers]
