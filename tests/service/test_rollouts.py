"""Puts into a log: once, in order, as safe as asked, whatever is sent again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import (
    BusyError,
    DiskFullError,
    EpisodeError,
    IdConflictError,
    LockHeldError,
    OutOfTimeError,
    PenstockError,
    PutError,
    ResendError,
    TooLargeError,
)
from schemas.identity import digest
from schemas.puts import Put, PutLimits, puts_of
from tests.reliability.kernel import Call, Kernel
from tests.service.logs import Actor, open_log, rollout, stored, waiting
from tests.strategies import assert_same_episode


def test_an_episode_exists_once_it_is_ended(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        rest = actor.begin(rollout("e"))
        assert len(rest) > 1
        assert waiting(log) == []
        for put in rest[:-1]:
            log.wait(actor.send(put))
        assert waiting(log) == []
        offset = log.wait(actor.send(rest[-1]))
        with log.tail() as tail:
            ((ended, found),) = tail.episodes()
        assert ended == offset == tail.through
        assert_same_episode(found, rollout("e"))


def test_offsets_grow_over_restarts(tmp_path: Path) -> None:
    offsets, servers = [], set()
    for number in range(4):
        with open_log(tmp_path) as log:
            offsets.append(Actor(log, f"a{number}").push(rollout(f"e{number}")))
            servers.add(log.server)
    assert offsets == sorted(set(offsets))
    assert len(servers) == 1


@pytest.mark.parametrize("is_reopened", [False, True])
def test_a_put_that_is_repeated_is_kept_once(is_reopened: bool, tmp_path: Path) -> None:
    log = open_log(tmp_path)
    actor = Actor(log)
    puts = actor.puts(rollout("e"))
    for put in puts:
        first = log.wait(actor.send(put))
    if is_reopened:
        log.close()
        log = actor.log = open_log(tmp_path)
    size = log.status()["log_bytes"]
    for put in puts:
        assert log.wait(actor.send(put), timeout=60) >= first
    assert log.status()["log_bytes"] == size
    assert waiting(log) == ["e"]
    log.close()


@pytest.mark.parametrize("is_reopened", [False, True])
def test_a_gap_must_be_sent_again(is_reopened: bool, tmp_path: Path) -> None:
    log = open_log(tmp_path)
    actor = Actor(log)
    puts = actor.puts(rollout("e"))
    log.wait(actor.send(puts[0]))
    if is_reopened:
        log.close()
        log = actor.log = open_log(tmp_path)
    with pytest.raises(ResendError, match="Expected put 1 of epoch 1"):
        actor.send(puts[2])
    with pytest.raises(ResendError, match="Expected put 0"):
        Actor(log, "other").log.put(
            puts[1].header.model_copy(update={"producer": "other"}), puts[1].rows
        )
    for put in puts[1:]:
        log.wait(actor.send(put))
    assert waiting(log) == ["e"]
    log.close()


def test_rows_that_leave_a_gap_must_be_sent_again(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        puts = actor.puts(rollout("e"))
        log.wait(actor.send(puts[0]))
        jumped = puts[2].header.model_copy(update={"sequence": 1})
        with pytest.raises(ResendError, match="came row"):
            log.put(jumped, puts[2].rows)
        unknown = puts[1].header.model_copy(update={"episode_id": "f"})
        with pytest.raises(ResendError, match="Expected row 0 of the episode 'f'"):
            log.put(unknown, puts[1].rows)


@pytest.mark.parametrize("is_reopened", [False, True])
def test_a_new_epoch_sends_the_open_episode_anew(is_reopened: bool, tmp_path: Path) -> None:
    log = open_log(tmp_path)
    actor = Actor(log)
    old = actor.begin(rollout("e"))
    actor.begin(rollout("left"))
    if is_reopened:
        log.close()
        log = actor.log = open_log(tmp_path)
        assert log.status()["open_episodes"] == 2
    actor.again()
    actor.push(rollout("e"))
    assert log.status()["open_episodes"] == 0, "what is not sent again is gone"
    with log.tail() as tail:
        ((_, found),) = tail.episodes()
    assert digest(found) == digest(rollout("e"))
    with pytest.raises(ResendError, match="Expected epoch 2"):
        log.put(old[0].header, old[0].rows)
    log.close()


@pytest.mark.parametrize("where", ["log", "reopened", "store"])
def test_an_episode_that_comes_again_is_kept_once(where: str, tmp_path: Path) -> None:
    log = open_log(tmp_path)
    Actor(log).push(rollout("e"))
    if where == "store":
        log.seal()
    if where == "reopened":
        log.close()
        log = open_log(tmp_path)
    again = Actor(log, "b")
    assert again.push(rollout("e")) > 0
    with pytest.raises(IdConflictError, match="give it an id of its own"):
        again.push(rollout("e", seed=1))
    log.wait(again.send(again.puts(rollout("f"))[0]))
    assert waiting(log) == ([] if where == "store" else ["e"])
    log.close()
    log = open_log(tmp_path)
    assert waiting(log) == ([] if where == "store" else ["e"])
    log.seal()
    assert stored(tmp_path) == ["e"]
    log.close()


def test_two_actors_race_with_one_id(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        outcomes: list[str] = []

        def send(name: str, seed: int) -> None:
            try:
                Actor(log, name).push(rollout("e", seed=seed))
                outcomes.append("taken")
            except IdConflictError:
                outcomes.append("conflict")

        threads = [threading.Thread(target=send, args=(f"a{k}", k % 2)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["conflict"] * 4 + ["taken"] * 4
        assert waiting(log) == ["e"]


def test_episodes_may_grow_side_by_side(tmp_path: Path) -> None:
    with open_log(tmp_path, memory_bytes=2000, segment_bytes=3000) as log:
        actors = [Actor(log, f"a{k}") for k in range(5)]
        sent = [actor.puts(rollout(f"e{k}", 10 + k)) for k, actor in enumerate(actors)]
        while any(sent):
            for actor, puts in zip(actors, sent, strict=True):
                if puts:
                    log.wait(actor.send(puts.pop(0)))
        with log.tail() as tail:
            found = {one.episode_id: one for _, one in tail.episodes()}
        assert len(found) == 5
        for k in range(5):
            assert_same_episode(found[f"e{k}"], rollout(f"e{k}", 10 + k))
        held = [p.batch for e in log._intake.episodes.ended.values() for p in e.pieces]
        assert None in held, "rows beyond the memory are let go of"


def test_a_repeat_is_told_no_earlier_than_the_first(tmp_path: Path) -> None:
    """Neither is a copy of the episode: nothing rests on what the disk does not have yet."""
    with Kernel(tmp_path) as kernel, open_log(tmp_path) as log:
        actor, other = Actor(log), Actor(log, "other")
        gate = threading.Event()

        def before(_: int, call: Call) -> int | None:
            if call.verb == "fsync":
                gate.wait(30)
            return None

        kernel.before = before
        puts = actor.puts(rollout("e"))
        first = [actor.send(put) for put in puts]
        again = [actor.send(put) for put in puts]
        copies = [other.send(put) for put in other.puts(rollout("e"))]
        try:
            for taken in (*first, *again, copies[-1]):
                with pytest.raises(OutOfTimeError):
                    log.wait(taken, timeout=0.001)
        finally:
            gate.set()
        assert [log.wait(taken, timeout=30) for taken in again] == [first[-1].offset] * len(puts)
        assert log.wait(copies[-1], timeout=30) > first[-1].offset
        assert waiting(log) == ["e"]


# -- what is refused -----------------------------------------------------------------------------


def test_a_put_that_is_refused_was_not_taken(tmp_path: Path) -> None:
    """Its number is still to come, and the episode it would have ended is given up."""
    with open_log(tmp_path) as log:
        actor = Actor(log)
        puts = actor.puts(rollout("e"))
        for put in puts[:-1]:
            actor.send(put)
        last = puts[-1]
        with pytest.raises(EpisodeError, match="Expected every row but the last"):
            log.put(last.header, last.rows.slice(0, last.rows.num_rows - 1))
        assert log.status()["open_episodes"] == 0
        assert actor.push(rollout("f"))
        assert waiting(log) == ["f"]
    with open_log(tmp_path) as log:
        assert waiting(log) == ["f"]
        assert log.status()["open_episodes"] == 0


def test_rows_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with open_log(tmp_path, limits=PutLimits(put_rows=5, episode_rows=8)) as log:
        actor = Actor(log)
        puts = actor.puts(rollout("e"))
        size = log.status()["log_bytes"]
        with pytest.raises(PutError):
            log.put(puts[0].header, puts[0].rows.select(["rewards"]))
        (whole,) = puts_of(rollout("e"), producer="a", epoch=1)
        with pytest.raises(TooLargeError):
            log.put(whole.header, whole.rows)
        assert log.status()["log_bytes"] == size
        with pytest.raises(TooLargeError, match="split it"):
            send_all(actor, puts)


def send_all(actor: Actor, puts: list[Put]) -> None:
    for put in puts:
        actor.send(put)


def push_many(actor: Actor) -> None:
    for number in range(100):
        actor.push(rollout(f"e{number}"))


def test_rows_of_another_kind_must_begin_anew(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        rest = actor.begin(rollout("e"), 1)
        other = actor.puts(rollout("e").replace(rewards=None))[1]
        header = other.header.model_copy(
            update={"start": rest[0].header.start, "sequence": actor.sequence}
        )
        with pytest.raises(ResendError, match="as the episode 'e' began with"):
            log.put(header, other.rows)


def test_too_much_unsealed_is_refused_until_it_is_sealed(tmp_path: Path) -> None:
    with open_log(tmp_path, max_unsealed_bytes=20_000) as log:
        actor = Actor(log)
        with pytest.raises(BusyError, match="not sealed") as told:
            push_many(actor)
        assert told.value.retry_after > 0
        with pytest.raises(BusyError):
            log.check()
        log.seal()
        log.check()
        actor.again()
        assert actor.push(rollout("late"))


def test_what_has_begun_may_end_above_the_mark(tmp_path: Path) -> None:
    with open_log(tmp_path, max_unsealed_bytes=30_000) as log:
        slow = Actor(log, "slow")
        rest = slow.begin(rollout("slow"))
        fast = Actor(log, "fast")
        with pytest.raises(BusyError):
            push_many(fast)
        for put in rest:
            log.wait(slow.send(put))
        assert "slow" in waiting(log)


def test_the_disks_reserve_is_kept(tmp_path: Path) -> None:
    with open_log(tmp_path, disk_reserve_bytes=1 << 60) as log:
        with pytest.raises(DiskFullError, match="free bytes on the log's disk"):
            Actor(log).push(rollout("e"))
        with pytest.raises(DiskFullError):
            log.check()


def test_an_episode_that_nobody_adds_to_is_given_up(tmp_path: Path) -> None:
    with open_log(tmp_path, abandon_after=0.0) as log:
        actor = Actor(log)
        rest = actor.begin(rollout("e"))
        log._tend()
        assert log.status()["open_episodes"] == 0
        with pytest.raises(ResendError):
            actor.send(rest[0])
    with open_log(tmp_path) as log:
        assert log.status()["open_episodes"] == 0


def test_a_log_has_one_process(tmp_path: Path) -> None:
    with open_log(tmp_path), pytest.raises(LockHeldError):
        open_log(tmp_path)


# -- as safe as asked ----------------------------------------------------------------------------


def test_acknowledgements_wait_for_what_they_say(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        first, *_, last = [actor.send(put) for put in actor.puts(rollout("e"))]
        assert log.wait(last, "received") == last.offset
        assert log.wait(last) == last.offset
        assert log.wait(first, "store", timeout=60) == first.offset, "it ends nothing"
        with pytest.raises(OutOfTimeError):
            log.wait(last, "store", timeout=0.05)
        log.seal()
        assert log.wait(last, "store", timeout=60) == last.offset
        assert log.sealed_through >= last.offset
        log.wait_durable(last.offset, 5)
        with pytest.raises(OutOfTimeError):
            log.wait_durable(last.offset + 10, 0.01)


def test_the_sealer_seals(tmp_path: Path) -> None:
    with open_log(tmp_path, seal_every=0.05) as log:
        actor = Actor(log)
        assert log.push(actor.puts(rollout("e")), ack="store", timeout=60)
        assert stored(tmp_path) == ["e"]
    with open_log(tmp_path, seal_every=3600, seal_bytes=1) as log:
        actor = Actor(log, "b")
        assert log.push(actor.puts(rollout("f")), ack="store", timeout=60)
        assert stored(tmp_path) == ["e", "f"]


def test_a_version_and_its_tail_have_everything_once(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=2000) as log:
        actor = Actor(log)
        first = actor.push(rollout("e0"))
        log.seal()
        actor.push(rollout("e1"))
        actor.push(rollout("e2"))
        with log.tail() as tail, log.tail(after=tail.through) as none:
            assert len(none) == 0
            assert tail.version is not None
            assert tail.through > first
            log.seal()  # its segments stay while somebody reads
            assert [one.episode_id for _, one in tail.episodes()] == ["e1", "e2"]
            version = log._sealing._catalog.refs.read(tail.version.branch, tail.version.number)
            assert version.totals.episodes == 1
        assert waiting(log) == []
        log.seal()
    assert stored(tmp_path) == ["e0", "e1", "e2"]


def test_nothing_but_our_errors_comes_out(tmp_path: Path) -> None:
    """Headers that are whole but wrong, in any order."""
    rng = np.random.default_rng(0)
    with open_log(tmp_path) as log:
        actors = [Actor(log, name) for name in "ab"]
        puts = [put for actor in actors for put in actor.puts(rollout("e"))]
        taken = 0
        for _ in range(400):
            put = puts[rng.integers(len(puts))]
            changes: dict[str, Any] = {
                "epoch": int(rng.integers(1, 3)),
                "sequence": int(rng.integers(0, 4)),
                "start": int(rng.choice([0, 0, put.header.start])),
                "episode_id": str(rng.choice(["e", "f"])),
            }
            try:
                log.wait(log.put(put.header.model_copy(update=changes), put.rows))
                taken += 1
            except PenstockError:
                continue
        assert taken > 10
        state = log.status()
    with open_log(tmp_path) as log:
        again = log.status()
        assert again["unsealed_episodes"] == state["unsealed_episodes"]
        assert again["open_episodes"] == state["open_episodes"]
        assert again["unsealed_bytes"] == state["unsealed_bytes"]
