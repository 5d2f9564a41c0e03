"""Tail and seal miss nothing: not while the log settles, not when a reader breaks off."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.service.flight_pull import _batches
from pipeline.service.pending import Pending
from pipeline.service.recent import sealed_since
from pipeline.service.segments import Segments
from schemas.pulls import encode_episode
from tests.service.logs import Actor, open_log, rollout, store_at, stored


def test_what_is_durable_and_not_told_yet_is_in_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail is read at the very moment before each record's writer is told."""
    settle = Pending.settle
    missed: list[int] = []
    looks: list[int] = []

    def looking(self: Pending, error: object) -> None:
        with log.tail() as tail:
            found = {offset for offset, _ in tail.episodes()}
            looks.append(tail.through)
            missed.extend(ended for ended in ends if ended <= tail.through and ended not in found)
        settle(self, error)  # type: ignore[arg-type]

    ends: list[int] = []
    with open_log(tmp_path) as log:
        actor = Actor(log)
        monkeypatch.setattr(Pending, "settle", looking)
        for k in range(5):
            *before, last = actor.puts(rollout(f"e{k}"))
            for put in before:
                log.wait(actor.send(put), timeout=30)
            with log._intake.changed:  # so that no look comes before its offset is known
                taken = actor.send(last)
                ends.append(taken.offset)
            log.wait(taken, timeout=30)
        monkeypatch.undo()
    assert looks[-1] == ends[-1]
    assert missed == []


def test_a_seal_skips_nothing_that_becomes_durable_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow until the seal looks at the first of three; then all are safe at once."""
    syncs, has_come = threading.Semaphore(0), threading.Semaphore(0)
    sync, is_durable = Segments.sync, Pending.is_durable.fget
    assert is_durable is not None

    def slowly(self: Segments) -> None:
        has_come.release()
        assert syncs.acquire(timeout=30)
        sync(self)

    def late(self: Pending) -> bool:
        found = is_durable(self)
        if self is taken[0].pending and not found:
            syncs.release(100)
            assert taken[-1].pending is not None
            taken[-1].pending.result(30)
        return bool(found)

    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("first"))
        log.seal()
        before = actor.begin(rollout("open"), puts=1)
        monkeypatch.setattr(Segments, "sync", slowly)
        monkeypatch.setattr(Pending, "is_durable", property(late))
        actor.send(before[0])
        assert has_come.acquire(timeout=30)
        taken = [[actor.send(put) for put in actor.puts(rollout(f"e{k}"))][-1] for k in range(3)]
        syncs.release()
        assert has_come.acquire(timeout=30)  # all three are one group, which waits for the disk
        log.seal()
        syncs.release(100)
        for one in taken:
            log.wait(one, timeout=30)
        log.seal()
    assert stored(tmp_path) == ["first", "e0", "e1", "e2"]


def test_who_breaks_off_within_a_commit_gets_the_rest(tmp_path: Path) -> None:
    """Going on after the offset of any episode that was received brings all that were not."""
    with open_log(tmp_path) as log:
        actor = Actor(log)
        names = [f"e{k}" for k in range(9)]
        for k, name in enumerate(names):
            actor.push(rollout(name))
            if k % 3 == 2:
                log.seal()
        store = store_at(tmp_path)

        def since(after: int) -> list[tuple[int, str]]:
            with log.tail() as tail:
                head = tail.version
            assert head is not None
            return [
                (offset, one.episode_id)
                for offset, one in sealed_since(store, head, log.server, after)
            ]

        everything = since(-1)
        assert [name for _, name in everything] == names
        for received in range(1, len(names)):
            after = everything[received - 1][0]
            rest = {name for _, name in since(after)} if after >= 0 else set(names)
            assert rest >= set(names[received:])
        assert len({offset for offset, _ in everything}) > 1


def test_much_is_sealed_in_several_commits(tmp_path: Path) -> None:
    with open_log(tmp_path, seal_bytes=5_000) as log:
        actor = Actor(log)
        for k in range(12):
            actor.push(rollout(f"e{k}"))
        log.seal()
        assert log.status()["unsealed_episodes"] == 0
        assert log.sealed_through >= log.status()["sealed_offset"]
        sizes = [
            commit.totals.episodes for commit in (one.commit for one in store_at(tmp_path).log())
        ]
    assert stored(tmp_path) == [f"e{k}" for k in range(12)]
    assert len(sizes) > 3
    assert sizes[0] == 12


def test_what_was_sent_is_let_go(tmp_path: Path) -> None:
    """Arrow's own memory is as it was after episodes went through the messages of a pull."""
    episodes = [rollout(f"e{k}", length=400) for k in range(50)]

    def sent() -> int:
        encoded = ((k, encode_episode(episode)) for k, episode in enumerate(episodes))
        return sum(batch.nbytes for batch, _ in _batches(encoded))

    assert sent() > 100_000
    gc.collect()
    before = pa.total_allocated_bytes()
    for _ in range(5):
        sent()
    gc.collect()
    assert pa.total_allocated_bytes() - before < 100_000
