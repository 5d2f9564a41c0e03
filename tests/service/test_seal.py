"""From the log into versions: each ended episode once, with its reason where it is not let in."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.service import recover
from pipeline.service.intake import Hooks
from pipeline.service.producers import Producers
from pipeline.service.records import Kind, checksum, header, padding
from pipeline.service.refused import FOLDER, read_refused
from pipeline.service.rollout_log import RolloutLog
from pipeline.service.seal import Offer, Sealing, source_name
from pipeline.service.segments import Segments
from schemas.episode import Episode
from schemas.errors import (
    DamagedLogError,
    DiskFullError,
    EpisodeError,
    IdConflictError,
    LogFailedError,
    SpecMismatchError,
    TransientError,
    UsageError,
)
from schemas.identity import digest
from tests.reliability.kernel import Call, Kernel
from tests.reliability.sizes import size
from tests.service.logs import Actor, config, open_log, rollout, store_at, stored, waiting
from tests.store.makers import quarantined
from tests.strategies import assert_same_episode


def test_sealed_episodes_are_those_that_were_sent(tmp_path: Path) -> None:
    sent = [rollout(f"e{k}", 5 + k, task="push", success=bool(k % 2)) for k in range(4)]
    with open_log(tmp_path) as log:
        actor = Actor(log)
        for one in sent[:3]:
            actor.push(one)
        open_ones = actor.begin(sent[3])
        done = log.seal()
        assert done is not None
        assert (done.episodes, done.steps, done.quarantined) == (3, 5 + 6 + 7, 0)
        assert log.seal() is None
        version = store_at(tmp_path).version()
        assert version.commit.ref == done.version
        for one in sent[:3]:
            found = version.episode(one.episode_id)
            assert digest(found) == digest(one)
            where = f"{source_name(log.server)}#"
            assert (found.source_key or "").startswith(where)
            assert_same_episode(found.replace(source_key=None), one)
        for put in open_ones:
            log.wait(actor.send(put))
        log.seal()
    assert stored(tmp_path) == ["e0", "e1", "e2", "e3"]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_restart_goes_on_where_the_log_ended(is_sealed: bool, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))
        rest = actor.begin(rollout("e1"))
        if is_sealed:
            log.seal()
    with open_log(tmp_path) as log:
        assert waiting(log) == ([] if is_sealed else ["e0"])
        actor.log = log
        for put in rest:
            log.wait(actor.send(put))
        log.seal()
    assert sorted(stored(tmp_path)) == ["e0", "e1"]


def test_the_store_says_where_to_go_on(tmp_path: Path) -> None:
    """A restart between the commit and the record of it: nothing is committed twice."""
    with open_log(tmp_path) as log:
        Actor(log).push(rollout("e"))
        log._intake.record_seal = None  # type: ignore[method-assign,assignment]
        with pytest.raises(TypeError):
            log.seal()
    with open_log(tmp_path) as log:
        assert waiting(log) == []
        assert log.seal() is None
    assert stored(tmp_path) == ["e"]
    assert store_at(tmp_path).version().number == 1


def test_an_old_copy_of_a_log_is_told(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        Actor(log).push(rollout("e0"))
    (segment,) = (tmp_path / "wal").iterdir()
    old = segment.read_bytes()
    with open_log(tmp_path) as log:
        Actor(log, "b").push(rollout("e1"))
        log.seal()
    for path in (tmp_path / "wal").iterdir():
        path.unlink()
    segment.write_bytes(old)
    with pytest.raises(DamagedLogError, match="an old copy"):
        open_log(tmp_path)


def test_segments_of_two_logs_are_told(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        Actor(log).push(rollout("e0"))
        following = log.status()["durable_offset"] + 1
    segments = Segments(tmp_path / "wal")
    segments.begin(following)
    says = recover.segment_payload("other", -1, Producers())
    crc = checksum([says])
    segments.write([header(Kind.SEGMENT, len(says), following, 0, crc), says, padding(len(says))])
    segments.sync()
    segments.close()
    with pytest.raises(DamagedLogError, match="came those of several"):
        open_log(tmp_path)


def test_a_begin_that_is_missing_is_told(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=1500) as log:
        Actor(log).push(rollout("e0"))
    first, *rest = sorted((tmp_path / "wal").iterdir())
    assert rest
    first.unlink()
    with pytest.raises(DamagedLogError, match="Expected the begin of the episode 'e0'"):
        open_log(tmp_path)


def test_a_log_of_another_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recover, "FORMAT", 99)
        open_log(tmp_path).close()
    with pytest.raises(DamagedLogError, match="of format 1, came 99"):
        open_log(tmp_path)


def test_a_changed_segment_is_told_or_does_no_harm(tmp_path: Path) -> None:
    """Bits of a log are changed: an error of ours, or what was sent, as far as it goes."""
    with open_log(tmp_path, segment_bytes=2000) as log:
        actor = Actor(log)
        for number in range(3):
            actor.push(rollout(f"e{number}", 4))
        actor.begin(rollout("open"))
    kept = {path: path.read_bytes() for path in (tmp_path / "wal").iterdir()}
    rng = random.Random(0)
    told = 0
    for _ in range(size(60, 3000)):
        for path in (tmp_path / "wal").iterdir():
            path.unlink()
        chosen = rng.choice(list(kept))
        for path, data in kept.items():
            changed = bytearray(data)
            if path == chosen:
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
        try:
            with open_log(tmp_path) as log, log.tail() as tail:
                for _, one in tail.episodes():
                    assert digest(one) == digest(rollout(one.episode_id, 4))
        except DamagedLogError:
            told += 1
    assert told > 10


def test_segments_go_once_all_in_them_is_sealed(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=4000) as log:
        slow, fast = Actor(log, "slow"), Actor(log, "fast")
        rest = slow.begin(rollout("slow"))
        for number in range(10):
            fast.push(rollout(f"e{number}"))
        before = log.status()["log_bytes"]
        log.seal()
        assert log.status()["log_bytes"] >= before, "the open episode needs the oldest one"
        for put in rest:
            log.wait(slow.send(put))
        log.seal()
        assert log.status()["log_bytes"] < before / 4
        fast.push(rollout("late"))
    with open_log(tmp_path) as log:
        assert waiting(log) == ["late"]
        log.seal()
    assert len(stored(tmp_path)) == 12


def test_an_episode_that_ends_during_a_seal_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))
        real = log._sealing.commit

        def commit(*arguments: Any) -> Any:
            done = real(*arguments)
            actor.push(rollout("e1"))
            return done

        monkeypatch.setattr(log._sealing, "commit", commit)
        log.seal()
        assert waiting(log) == ["e1"]
        monkeypatch.undo()
        log.seal()
    assert stored(tmp_path) == ["e0", "e1"]


def test_puts_are_repeated_after_their_segments_are_gone(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=1000) as log:
        actor = Actor(log)
        puts = actor.puts(rollout("e"))
        actor.push(rollout("e"))
        log.seal()
    with open_log(tmp_path) as log:
        assert log.wait(log.put(puts[-1].header, puts[-1].rows), "store", timeout=10) > 0
        assert waiting(log) == []


# -- what is not let in --------------------------------------------------------------------------


def with_nan(name: str) -> Episode:
    return rollout(name).replace(rewards=np.where(np.arange(20) == 3, np.nan, 0.0))


def test_values_that_are_not_finite_are_refused_before_the_end_is_taken(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))
        with pytest.raises(EpisodeError, match="Expected finite rewards") as caught:
            actor.push(with_nan("nan"))
        assert caught.value.code == "nan"
        actor.again()
        actor.push(rollout("e1"))
        log.seal()
        assert waiting(log) == []
    assert stored(tmp_path) == ["e0", "e1"]
    assert quarantined(store_at(tmp_path)) == []


def test_the_first_episode_of_an_empty_branch_settles_its_fields(tmp_path: Path) -> None:
    """What waits in the log counts, over restarts too: nothing that is taken is left out later."""
    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))
        with pytest.raises(SpecMismatchError, match="Expected episodes of the spec"):
            actor.push(wide("w0"))
    with open_log(tmp_path) as log:
        with pytest.raises(SpecMismatchError):
            Actor(log, "b").push(wide("w0"))
        double = rollout("e1").replace(actions=np.ones((20, 2), np.float64))
        Actor(log, "c").push(double)  # casts, as it would be on a branch that has such episodes
        done = log.seal()
        assert done is not None
        assert (done.episodes, done.quarantined) == (2, 0)
        with pytest.raises(SpecMismatchError):
            Actor(log, "d").push(wide("w0"))
    assert stored(tmp_path) == ["e0", "e1"]
    assert store_at(tmp_path).version().episode("e1").flat_actions["actions"].dtype == np.float32


def test_actors_that_race_for_an_empty_branch_are_told_alike(tmp_path: Path) -> None:
    """Whatever is taken comes into a version; whoever does not fit the first one is refused."""
    for turn in range(5):
        race(tmp_path / f"{turn}")


def race(root: Path) -> None:
    begun = threading.Barrier(4)
    taken: list[str] = []

    def push(number: int) -> None:
        one = wide(f"e{number}") if number % 2 else rollout(f"e{number}")
        actor = Actor(log, f"a{number}")
        begun.wait()
        with contextlib.suppress(SpecMismatchError):
            actor.push(one)
            taken.append(one.episode_id)

    with open_log(root) as log:
        threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.seal()
    assert sorted(stored(root)) == sorted(taken)
    assert len(taken) == 2
    assert quarantined(store_at(root)) == []


def test_fields_whose_episode_found_no_room_settle_nothing(tmp_path: Path) -> None:
    with Kernel(tmp_path) as kernel, open_log(tmp_path) as log:
        is_sent = threading.Event()

        def before(_: int, call: Call) -> int | None:
            if call.verb == "write":
                assert is_sent.wait(30)
                raise OSError(errno.ENOSPC, "full")
            return None

        kernel.before = before
        actor = Actor(log)
        taken = [actor.send(put) for put in actor.puts(rollout("e0"))]
        is_sent.set()
        with pytest.raises(DiskFullError):
            log.wait(taken[-1], timeout=30)
        kernel.before = None
        Actor(log, "b").push(wide("w0"))
        with pytest.raises(SpecMismatchError):
            Actor(log, "c").push(rollout("e0"))
        log.seal()
    assert stored(tmp_path) == ["w0"]


def test_what_another_writer_kept_out_is_told_and_keeps_its_rows(tmp_path: Path) -> None:
    """Two servers of one store cannot see one another's logs."""
    store_at(tmp_path)
    with open_log(tmp_path) as log:
        actor = Actor(log)
        taken = [actor.send(put) for one in ("e0", "e1", "e2") for put in actor.puts(rollout(one))]
        store_at(tmp_path).append([wide("w0"), wide("e1")])
        done = log.seal()
        assert done is not None
        assert (done.episodes, done.quarantined) == (0, 3)
        for one in taken:
            assert log.wait(one, "durable", 10) == one.offset
            if one.is_end:
                with pytest.raises(SpecMismatchError, match="It is in quarantine"):
                    log.wait(one, "store", 10)
                with pytest.raises(SpecMismatchError):
                    log.is_safe(one, "store")
        last = actor.puts(rollout("e2"))[-1].header
        again = last.model_copy(update={"sequence": actor.sequence - 1})
        repeated = log.put(again, actor.puts(rollout("e2"))[-1].rows)
        with pytest.raises(EpisodeError, match="it is in none"):
            log.wait(repeated, "store", 10)
    assert sorted(stored(tmp_path)) == ["e1", "w0"]
    assert {code for _, code in quarantined(store_at(tmp_path))} == {"spec_mismatch"}
    assert kept(tmp_path) == {name: digest(rollout(name)) for name in ("e0", "e1", "e2")}
    state = store_at(tmp_path).catalog.refs.state(store_at(tmp_path).version().commit)
    (mine,) = [one for name, one in state.sources.items() if name.startswith("rollouts/")]
    assert mine.episodes == 0
    assert mine.quarantined["spec_mismatch"] == 3


def kept(root: Path) -> dict[str, str]:
    """Ids and digests of the episodes whose rows a log keeps beside it."""
    found = [read_refused(path) for path in sorted((root / "wal" / FOLDER).iterdir())]
    return {one.episode_id: digest(one) for one in found}


def test_an_id_that_another_writer_took_meanwhile_is_quarantined(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        ends = [actor.send(put) for name in ("e0", "e1") for put in actor.puts(rollout(name))]
        store_at(tmp_path).append([rollout("e0", seed=5), rollout("e1")])
        log.seal()
        with pytest.raises(IdConflictError):
            log.wait(next(one for one in ends if one.is_end), "store", 10)
        assert log.wait(ends[-1], "store", 10) == ends[-1].offset
    assert sorted(stored(tmp_path)) == ["e0", "e1"]
    assert quarantined(store_at(tmp_path)) == [("e0", "id_conflict")]
    assert kept(tmp_path) == {"e0": digest(rollout("e0"))}


def test_rows_are_kept_over_a_crash_between_the_commit_and_its_record(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        Actor(log).push(rollout("e0"))
        Actor(log, "b").push(rollout("e1"))
        store_at(tmp_path).append([rollout("e0", seed=5)])
        log._sealing.commit(log.server, log.status()["durable_offset"], lambda: offers_of(log))
    assert not (tmp_path / "wal" / FOLDER).exists()
    with open_log(tmp_path) as log:
        assert waiting(log) == []
    assert kept(tmp_path) == {"e0": digest(rollout("e0"))}
    assert sorted(stored(tmp_path)) == ["e0", "e1"]


def offers_of(log: RolloutLog) -> list[Offer]:
    with log.tail() as tail:
        return [Offer(one, digest(one)) for _, one in tail.episodes()]


def test_a_seal_that_was_done_before_says_what_was_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        taken = [actor.send(put) for put in actor.puts(rollout("e1"))]
        log.wait(taken[-1], timeout=10)
        store_at(tmp_path).append([rollout("e1", seed=5)])
        log._sealing.commit(log.server, taken[-1].offset, lambda: offers_of(log))
        log.seal()
        with pytest.raises(IdConflictError):
            log.wait(taken[-1], "store", 10)
    assert kept(tmp_path) == {"e1": digest(rollout("e1"))}


def test_rows_that_cannot_be_kept_yet_stay_in_the_log(tmp_path: Path) -> None:
    with Kernel(tmp_path) as kernel, open_log(tmp_path) as log:
        Actor(log).push(rollout("e0"))
        store_at(tmp_path).append([rollout("e0", seed=5)])

        def before(_: int, call: Call) -> int | None:
            if FOLDER in call.path and call.verb == "write":
                raise OSError(errno.ENOSPC, "full")
            return None

        kernel.before = before
        with pytest.raises(TransientError, match="Could not keep the rows"):
            log.seal()
        assert waiting(log) == ["e0"]
        kernel.before = None
        log.seal()
        assert waiting(log) == []
    assert kept(tmp_path) == {"e0": digest(rollout("e0"))}


def test_other_fields_may_join_as_a_spec_of_their_own(tmp_path: Path) -> None:
    with open_log(tmp_path, new_spec="wide") as log:
        actor = Actor(log)
        for one in (rollout("e0"), wide("w0"), rollout("e1"), wide("w1")):
            actor.push(one)
        while log.seal():
            pass
        assert waiting(log) == []
    assert sorted(stored(tmp_path)) == ["e0", "e1", "w0", "w1"]
    version = store_at(tmp_path).version()
    assert set(store_at(tmp_path).catalog.refs.state(version.commit).specs) == {"default", "wide"}


def test_fields_that_fit_no_spec_are_refused_as_soon_as_it_is_known(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))
        log.seal()
        with pytest.raises(SpecMismatchError, match="Expected episodes of the spec"):
            actor.push(wide("w0"))
        actor.again()
        actor.push(rollout("e1"))
        log.seal()
    assert stored(tmp_path) == ["e0", "e1"]
    assert quarantined(store_at(tmp_path)) == []


def wide(name: str) -> Episode:
    """An episode of other observations than the others'."""
    return rollout(name).replace(observations={"observations": np.zeros((21, 9), np.float32)})


def test_rollouts_are_cast_to_the_branch(tmp_path: Path) -> None:
    store_at(tmp_path).append([rollout("e0")])
    double = rollout("e1").replace(actions=np.ones((20, 2), np.float64))
    with open_log(tmp_path) as log:
        Actor(log).push(double)
        log.seal()
    assert store_at(tmp_path).version().episode("e1").flat_actions["actions"].dtype == np.float32


def test_two_logs_feed_one_branch(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    one = RolloutLog(store, config(tmp_path / "one"))
    two = RolloutLog(store, config(tmp_path / "two"))
    Actor(one).push(rollout("e0"))
    Actor(two).push(rollout("e0"))
    Actor(two, "b").push(rollout("e1"))
    one.seal()
    two.seal()
    one.close()
    two.close()
    assert sorted(stored(tmp_path)) == ["e0", "e1"]
    state = store.catalog.refs.state(store.version().commit)
    assert set(state.sources) == {source_name(one.server), source_name(two.server)}


def test_a_branch_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Sealing(store_at(tmp_path), "../x", None)


# -- faults --------------------------------------------------------------------------------------


def test_a_store_that_fails_keeps_nothing_from_the_log(tmp_path: Path) -> None:
    with Kernel(tmp_path) as kernel, open_log(tmp_path) as log:
        actor = Actor(log)
        actor.push(rollout("e0"))

        def before(_: int, call: Call) -> int | None:
            if call.path.startswith("store/") and call.verb == "create":
                raise OSError(errno.EIO, "broken")
            return None

        kernel.before = before
        with pytest.raises(TransientError):
            log.seal()
        actor.push(rollout("e1"))
        assert waiting(log) == ["e0", "e1"]
        kernel.before = None
        done = log.seal()
        assert done is not None
        assert done.episodes == 2
    assert stored(tmp_path) == ["e0", "e1"]


def test_the_sealer_tries_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Kernel(tmp_path) as kernel, open_log(tmp_path, seal_every=0.01) as log:
        failed = threading.Event()

        def before(_: int, call: Call) -> int | None:
            if call.path.startswith("store/") and call.verb == "create":
                failed.set()
                raise OSError(errno.EIO, "broken")
            return None

        kernel.before = before
        offset = Actor(log).push(rollout("e0"))
        assert failed.wait(30)
        kernel.before = None
        log.wait_sealed(offset, 30)
    assert stored(tmp_path) == ["e0"]
    assert "they stay in the log" in caplog.text


def test_a_log_that_failed_says_so_to_all(tmp_path: Path) -> None:
    told: list[LogFailedError] = []
    with Kernel(tmp_path) as kernel:
        log = RolloutLog(store_at(tmp_path), config(tmp_path), Hooks(failed=told.append))
        actor = Actor(log)
        actor.push(rollout("e0"))

        def before(_: int, call: Call) -> int | None:
            if call.verb == "fsync" and call.path.startswith("wal/"):
                raise OSError(errno.EIO, "broken")
            return None

        kernel.before = before
        last = actor.send(actor.puts(rollout("e1"))[0])
        for wait in (
            lambda: log.wait(last, timeout=30),
            lambda: log.wait_durable(last.offset, 30),
            lambda: log.wait_sealed(last.offset, 30),
            log.check,
            lambda: Actor(log, "b").push(rollout("e2")),
        ):
            with pytest.raises(LogFailedError):
                wait()
        assert len(told) == 1
        assert log.status()["failure"]
        kernel.before = None
        log.close()
    with open_log(tmp_path) as log:
        assert "e0" in waiting(log)


def test_a_seal_makes_the_room_that_its_record_needs(tmp_path: Path) -> None:
    with Kernel(tmp_path) as kernel, open_log(tmp_path, segment_bytes=2000) as log:
        Actor(log).push(rollout("e0"))
        before = log.status()["log_bytes"]

        def full(_: int, call: Call) -> int | None:
            is_freed = any(done.verb == "unlink" and "wal" in done.path for done in kernel.trace)
            if call.path.startswith("wal/") and call.verb == "write" and not is_freed:
                raise OSError(errno.ENOSPC, "full")
            return None

        kernel.before = full
        done = log.seal()
        assert done is not None
        assert done.episodes == 1
        assert log.status()["log_bytes"] < before
    with open_log(tmp_path) as log:
        assert waiting(log) == []


def test_a_full_disk_is_refused_and_left_behind(tmp_path: Path) -> None:
    """Puts of a group that found no room must come again, in a new epoch; the rest goes on."""
    with Kernel(tmp_path) as kernel, open_log(tmp_path) as log:
        calm, actor = Actor(log, "calm"), Actor(log)
        calm_rest = calm.begin(rollout("calm"))
        actor.push(rollout("e0"))
        rest = actor.begin(rollout("e1"))

        def before(_: int, call: Call) -> int | None:
            if call.verb == "write":
                raise OSError(errno.ENOSPC, "full")
            return None

        kernel.before = before
        taken = log.put(rest[0].header, rest[0].rows)
        with pytest.raises(DiskFullError):
            log.wait(taken, timeout=10)
        ended = Actor(log, "ended")
        with pytest.raises(TransientError):
            ended.push(rollout("e2"))
        kernel.before = None
        with pytest.raises(TransientError):
            log.put(rest[1].header, rest[1].rows)
        for put in calm_rest:
            log.wait(calm.send(put))
        for again in (actor, ended):
            again.again()
        actor.push(rollout("e1"))
        ended.push(rollout("e2"))
        assert sorted(waiting(log)) == ["calm", "e0", "e1", "e2"]
        assert log.status()["refusals"] >= 2
    with open_log(tmp_path) as log:
        assert sorted(waiting(log)) == ["calm", "e0", "e1", "e2"]
        log.seal()
    assert sorted(stored(tmp_path)) == ["calm", "e0", "e1", "e2"]
