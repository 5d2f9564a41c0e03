"""Gathers made ahead: the same batches, errors and states as without, and no thread left behind."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.store import Store
from pipeline.stream.ahead import Ahead
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import ConfigError, DamagedStoreError
from tests.stream.conftest import made_episodes
from tests.stream.references import take

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = 150  # batches: more than one gather holds


def stream(data: Any, **settings: Any) -> Stream:
    return Stream(data, **{"framework": "numpy", "batch_size": 16, "seed": 4, **settings})


def equal(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return len(mine) == len(theirs) and all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(mine, theirs, strict=True)
    )


def threads() -> int:
    return sum(thread.name.startswith("penstock-ahead") for thread in threading.enumerate())


def eventually(count: int) -> bool:
    """True once there are so few threads: one that nobody waits for takes a moment to end."""
    for _ in range(200):
        if threads() <= count:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    gc.collect()
    before = threads()
    yield
    gc.collect()
    assert eventually(before)


# -- the same batches --------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "window", "window": 5, "history": 2, "episode_ids": True},
        {"sampler": "shuffle", "residency": "windowed"},
        {"goals": "future", "rank": 1, "world_size": 3},
    ],
    ids=str,
)
def test_batches_are_those_made_without(
    store: Store, settings: dict[str, Any], framework: str
) -> None:
    version = store.version()
    plain = take(stream(version, framework=framework, **settings), SEVERAL)
    for depth in (1, 3):
        with stream(version, framework=framework, prefetch=depth, **settings) as ahead:
            assert equal(take(ahead, SEVERAL), plain)


def test_tensors_made_ahead_own_their_memory(store: Store) -> None:
    made = stream(store.version(), framework="torch", prefetch=1)
    kept = take(made, SEVERAL)
    before = [batch["observations"].clone() for batch in kept]
    kept[0]["observations"].fill_(-1)
    take(made, SEVERAL)
    for batch, tensor in zip(kept[1:], before[1:], strict=True):
        assert batch["observations"].equal(tensor)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("stop", np.random.default_rng(1).integers(1, SEVERAL, 4).tolist())
def test_a_resume_at_any_step_reads_on(store: Store, stop: int, depth: int) -> None:
    version = store.version()
    whole = take(stream(version), SEVERAL + 10)
    with stream(version, prefetch=depth) as first:
        assert equal(take(first, stop), whole[:stop])
        state = first.state_dict()
        take(first, 7)  # what was made ahead is of no state
        first.load_state_dict(state)
        assert equal(take(first, 5), whole[stop : stop + 5])
    unlike = stream(version, prefetch=3 - depth)
    unlike.load_state_dict(state)
    assert unlike.state_dict() == state == {**stream(version).state_dict(), "step": stop}
    assert equal(take(unlike, len(whole) - stop), whole[stop:])


@pytest.mark.parametrize("depth", [1, 3])
def test_following_takes_hold_at_the_next_batch(store: Store, depth: int) -> None:
    first = store.version()
    grown = store.append(made_episodes(range(30, 60)))

    def run(depth: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        made = stream(first, prefetch=depth)
        seen = take(made, 70)
        made.follow(grown)
        seen += take(made, 9)
        made.follow(grown)  # again changes nothing
        seen += take(made, 30)
        made.follow("main:1")
        return seen + take(made, 41), made.state_dict()

    (seen, state), (expected, told) = run(depth), run(0)
    assert equal(seen, expected)
    assert state == told
    again = stream(first, prefetch=depth)
    again.load_state_dict({**state, "step": 0})  # versions change while the thread goes on
    assert equal(take(again, len(seen)), seen)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_mixture_is_the_same(store: Store, framework: str) -> None:
    version = store.version()
    grown = store.append(made_episodes(range(30, 40)))

    def run(depth: int) -> list[dict[str, Any]]:
        settings: dict[str, Any] = {"framework": framework, "prefetch": depth}
        sources = [stream(version, **settings), stream(grown, sampler="shuffle", **settings)]
        mixture = Mixture([(one, 1.0) for one in sources], batch_size=16)
        seen = take(mixture, 90)
        mixture.follow(version)
        seen += take(mixture, 30)
        mixture.load_state_dict({**mixture.state_dict(), "step": 5})
        return seen + take(mixture, 30)

    assert equal(run(2), run(0))


def test_a_sampler_that_is_told_of_each_batch_makes_none_ahead(store: Store) -> None:
    with pytest.raises(ConfigError, match="waits for the priorities"):
        stream(store.version(), sampler="prioritised", prefetch=1)
    assert "ahead" not in stream(store.version(), sampler="prioritised").describe()
    assert "keeps 3 gathers ahead" in stream(store.version(), prefetch=3).describe()


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_the_batch_is_asked_for(store: Store, depth: int) -> None:
    blocks = sorted(path for path in Path(store.url).rglob("*") if path.is_file())
    kept = {path: path.read_bytes() for path in blocks}
    expected = take(stream(store.version(), sampler="shuffle"), 20)
    made = stream(store.version(), sampler="shuffle", residency="windowed", prefetch=depth)
    for path in blocks:
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DamagedStoreError):
            next(made)
    assert made.step == 0
    for path, data in kept.items():
        path.write_bytes(data)
    assert equal(take(made, 20), expected), "the next call tries again"


def test_what_is_asked_for_is_made_once_and_in_order() -> None:
    made: list[tuple[int, str]] = []

    def make(step: int) -> tuple[int, int]:
        made.append((step, threading.current_thread().name.rsplit("_", 1)[0]))
        return 10, step

    ahead: Ahead[int] = Ahead(2)
    assert [ahead.take(step, make, lambda: make) for step in (0, 10, 20)] == [0, 10, 20]
    ahead.drop()
    assert ahead.take(70, make, lambda: make) == 70
    ahead.close()
    steps = [step for step, _ in made]
    before = steps[: steps.index(70)]
    assert before == list(range(0, 10 * len(before), 10))
    assert 3 <= len(before) <= 5
    assert {name for _, name in made} == {"penstock-ahead"}
    assert Ahead(0).take(5, lambda step: (1, step), lambda: make) == 5


def test_after_a_drop_nothing_is_being_made() -> None:
    begun, ended = [], []

    def make(step: int) -> tuple[int, int]:
        begun.append(step)
        time.sleep(0.05)
        ended.append(step)
        return 1, step

    ahead: Ahead[int] = Ahead(3)
    assert ahead.take(0, make, lambda: make) == 0
    while len(begun) < 2:
        time.sleep(0.001)
    ahead.drop()
    assert ended == begun
    ahead.close()
    assert ended == begun


# -- the thread's life -------------------------------------------------------------------------


def test_the_thread_ends_with_the_stream(store: Store) -> None:
    before = threads()
    made = stream(store.version(), prefetch=2)
    assert threads() == before, "none before a batch is asked for"
    next(made)
    assert threads() == before + 1
    made.close()
    assert threads() == before
    made.close()
    take(made, SEVERAL)
    assert threads() == before + 1
    gc.disable()
    try:
        del made  # no circle keeps it
        assert eventually(before)
    finally:
        gc.enable()


def test_an_interpreter_that_exits_waits_for_no_more_than_is_under_way(store: Store) -> None:
    script = (
        "import sys, penstock\n"
        f"stream = penstock.Stream({str(store.url)!r}, framework='numpy', prefetch=3)\n"
        "print(next(stream)['indices'][0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == next(Stream(store.url, framework="numpy"))["indices"][0]


def _send(made: Stream, pipe: Any) -> None:
    pipe.send([batch["indices"] for batch in take(made, 100)])
    made.describe()
    made.follow("main")
    made.close()
    pipe.close()


def test_a_forked_process_reads_on_with_a_thread_of_its_own(store: Store) -> None:
    expected = [batch["indices"] for batch in take(stream(store.version()), 110)]
    with stream(store.version(), prefetch=2) as made:
        take(made, 10)
        fork = multiprocessing.get_context("fork")
        mine, theirs = fork.Pipe()
        child = fork.Process(target=_send, args=(made, theirs))
        child.start()
        assert mine.poll(60)
        seen = mine.recv()
        child.join(60)
        assert child.exitcode == 0
        np.testing.assert_array_equal(seen, expected[10:])
        np.testing.assert_array_equal([b["indices"] for b in take(made, 100)], expected[10:])
