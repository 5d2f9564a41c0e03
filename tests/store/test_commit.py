"""The commit protocol: dense numbers, one winner per number, no commit hidden or invented."""

from __future__ import annotations

import datetime as dt
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.store import commit as protocol
from pipeline.store import ids, layout
from pipeline.store.append import Batch, commit_batch
from pipeline.store.commit import CHECKPOINT_EVERY, Draft
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, open_store
from schemas.errors import DamagedStoreError, NameTakenError, NotFoundError, TransientError
from schemas.state import apply
from schemas.version import Append, Commit, SourceState, State
from tests.store.disks import (
    CountingObjects,
    Interrupted,
    LostReplies,
    QuickDisk,
    quick_store,
    store_on,
)
from tests.store.makers import episode, ids_of, names, score


def idle(_head: Commit | None, _state: State) -> Draft:
    return Draft((Append(),))


def commit_idle(store: Store, count: int, branch: str = "main") -> None:
    for _ in range(count):
        store.catalog.refs.publish(branch, idle, message="idle", run_id=layout.new_id())


# -- numbers -----------------------------------------------------------------------------------


def test_numbers_are_dense_and_files_never_change(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    folder = tmp_path / "s/refs/branches/main"
    before: dict[str, bytes] = {}
    for number, name in enumerate(names(5), 1):
        version = store.append([episode(name)])
        assert (version.number, version.branch) == (number, "main")
        assert (version.parent.number if version.parent else 0) == number - 1
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {name: now[name] for name in before} == before
        before = now
    assert sorted(before) == [f"{number:012d}.json" for number in range(1, 6)]
    assert [version.number for version in open_store(tmp_path / "s").log()] == [5, 4, 3, 2, 1]


def test_a_lost_race_is_planned_again_on_the_winner(tmp_path: Path) -> None:
    root = tmp_path / "s"
    rival = open_store(root, create=True)
    rival.append([episode("first")])
    mine = store_on(
        Interrupted(root, "branches/main", lambda: rival.append([episode("r"), episode("both")]))
    )
    outcome = mine.append_batch([episode("both"), episode("m")])
    assert outcome.commit is not None
    assert outcome.commit.number == 3
    assert [row.episode_id for row in outcome.added] == ["m"]
    assert outcome.known == 1
    assert ids_of(open_store(root).version()) == ["first", "r", "both", "m"]


def test_a_lost_race_over_content_is_a_conflict(tmp_path: Path) -> None:
    root = tmp_path / "s"
    rival = open_store(root, create=True)
    mine = store_on(
        Interrupted(root, "branches/main", lambda: rival.append([episode("e", seed=1)]))
    )
    outcome = mine.append_batch([episode("e", seed=2), episode("f")])
    assert [refusal.code for refusal in outcome.refusals] == ["id_conflict"]
    assert ids_of(open_store(root).version()) == ["e", "f"]


def test_endless_races_end_as_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Beaten(LocalObjects):
        """Another writer takes every number first."""

        def put_if_absent(self, key: str, data: bytes) -> bool:
            if "branches" in key:
                document = Commit.model_validate_json(data).model_copy(
                    update={"id": layout.new_id(), "run_id": "rival"}
                )
                super().put_if_absent(key, document.model_dump_json().encode())
            return super().put_if_absent(key, data)

    monkeypatch.setattr(protocol, "RETRY_SECONDS", -1.0)  # the first try is the last
    with pytest.raises(TransientError, match="run it again"):
        store_on(Beaten(tmp_path / "s")).append([episode("e")])


# -- lost replies and lost processes -----------------------------------------------------------


def test_a_lost_reply_is_recognised_as_own(tmp_path: Path) -> None:
    store = store_on(LostReplies(tmp_path / "s"))
    assert store.append([episode("a")]).number == 1
    assert store.append([episode("b")]).number == 2
    store.tag("t")
    store.version().where("length > 0").commit(branch="c")
    assert store.branch("d").number == 1
    store.delete_branch("d")
    again = open_store(tmp_path / "s")
    assert ids_of(again.version()) == ["a", "b"]
    assert again.version("t").id == again.version().id
    assert len(list((tmp_path / "s/refs/branches/main").iterdir())) == 2
    assert len(list((tmp_path / "s/refs/branches/c").iterdir())) == 1
    assert len(list((tmp_path / "s/refs/branches/d").iterdir())) == 2


def test_a_job_whose_process_died_finds_its_commit(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a")])
    base = store.version().number
    score(store, {"a": 0.5})
    store.catalog.refs.publish("main", idle, message="mine", run_id="job-7")
    store.append([episode("b")])  # and the world goes on

    def never(_head: Commit | None, _state: State) -> Draft:
        raise AssertionError("planned again although it is committed")

    refs = open_store(tmp_path / "s").catalog.refs
    found = refs.publish("main", never, message="again", run_id="job-7", base=base)
    assert found is not None
    assert (found.number, found.message) == (3, "mine")
    outcome = commit_batch(
        open_store(tmp_path / "s").catalog,
        Batch(),
        branch="main",
        message="",
        run_id="job-7",
        base=base,
    )
    assert outcome.commit == found
    # Without its base, or with another run id, there is nothing to find.
    for run_id, since in (("job-7", None), ("job-8", base)):
        with pytest.raises(AssertionError, match="planned again"):
            refs.publish("main", never, message="", run_id=run_id, base=since)


def test_a_close_whose_reply_was_lost_is_found_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a")], branch="b")
    refs = store.catalog.refs
    closed = refs.publish("b", protocol.close_plan, message="close", run_id="job")
    assert refs.publish("b", protocol.close_plan, message="", run_id="job", base=1) == closed
    with pytest.raises(NameTakenError, match="closed"):
        refs.publish("b", protocol.close_plan, message="", run_id="other", base=1)


def test_racing_creators_agree_on_one_store(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    found: list[str] = []

    def create() -> None:
        barrier.wait()
        found.append(open_store(tmp_path / "deep/er/s", create=True).id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {open_store(tmp_path / "deep/er/s").id}


# -- the head ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 49, 51])
def test_gallop_finds_the_head(tmp_path: Path, count: int) -> None:
    store = quick_store(tmp_path / "s")
    commit_idle(store, count)
    objects = CountingObjects(tmp_path / "s")
    fresh = store_on(objects, create=False)
    head = fresh.catalog.refs.head("main")
    assert head is not None
    assert head.number == count
    assert len(objects.asked) <= 2 * count.bit_length() + 4


HINTS: list[bytes | None] = [
    *(b"999999999999", b"8", b"1", b"0", b"-3", b"7", b"6", b"99999999999999999999999999"),
    *(b"abc", b"", b"\xff\xfe", b"5\n", b"\xd9\xa5", None),
]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_a_hint_that_lies_neither_hides_nor_invents(tmp_path: Path, hint: bytes | None) -> None:
    store = quick_store(tmp_path / "s")
    commit_idle(store, 7)
    path = tmp_path / "s" / layout.head_hint("main")
    path.unlink(missing_ok=True)
    if hint is not None:
        path.write_bytes(hint)
    fresh = open_store(tmp_path / "s")
    assert fresh.version().number == 7
    assert fresh.append([episode("e")]).number == 8
    assert open_store(tmp_path / "s").version().number == 8
    assert open_store(tmp_path / "s").branches().keys() == {"main"}


def test_a_writer_sees_what_others_committed_since(tmp_path: Path) -> None:
    one, two = quick_store(tmp_path / "s"), quick_store(tmp_path / "s")
    for number in range(1, 9, 2):
        commit_idle(one, 1)
        assert two.version().number == number
        commit_idle(two, 1)
        assert one.version().number == number + 1


def test_no_branch_no_version(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    assert store.catalog.refs.head("main") is None
    with pytest.raises(NotFoundError, match="without any"):
        store.version()
    commit_idle(store, 2)
    for number in (0, 3):
        with pytest.raises(NotFoundError, match=f"main:{number}"):
            store.version(f"main:{number}")


# -- time --------------------------------------------------------------------------------------


def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock shows an hour less."""
    shown = [dt.datetime(2030, 1, 1, tzinfo=dt.UTC)]

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> dt.datetime:  # type: ignore[override]
            shown.append(shown[-1] - dt.timedelta(hours=1))
            return shown[-1].astimezone(tz)

    clock = SimpleNamespace(datetime=Clock, UTC=dt.UTC, timedelta=dt.timedelta)
    monkeypatch.setattr(protocol, "dt", clock)


def test_time_never_runs_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards(monkeypatch)
    store = open_store(tmp_path / "s", create=True)
    for name in names(4):
        store.append([episode(name)])
    branch = store.branch("other")
    curated = branch.where("length > 0").commit(branch="chosen")
    times = [version.created_at for version in reversed(store.log("chosen"))]
    assert len(times) == 6
    assert curated.created_at == times[-1]
    assert all(early < late for early, late in pairwise(times))
    for number in range(1, 5):
        when = store.version(f"main:{number}").created_at
        assert store.version(when).number == number


# -- checkpoints -------------------------------------------------------------------------------


def folded(store: Store, branch: str = "main") -> State:
    """The state from every operation of a branch, no checkpoint used."""
    state = State()
    head = store.catalog.refs.head(branch)
    for number in range(1, (head.number if head else 0) + 1):
        state = apply(state, store.catalog.refs.read(branch, number).operations)
    return state


def known_keys(store: Store, state: State) -> set[tuple[int, int]]:
    pairs = [store.catalog.id_index(file) for file in state.known]
    return set(map(tuple, np.concatenate(pairs).tolist()))


def test_checkpoints_change_nothing_but_the_way(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    for number in range(2 * CHECKPOINT_EVERY + 7):
        store.append([episode(f"e{number}", 2)])
    score(store, {"e3": 0.5})
    with_state = [
        number
        for number in range(1, store.version().number + 1)
        if store.catalog.refs.read("main", number).state is not None
    ]
    assert with_state == [50, 100]

    objects = CountingObjects(tmp_path / "s")
    fresh = store_on(objects, create=False)
    state = fresh.version().state
    commits = [key for key in objects.reads if "branches/main/0" in key]
    assert len(commits) <= CHECKPOINT_EVERY + 1

    whole = folded(fresh)
    assert state.model_copy(update={"known": ()}) == whole.model_copy(update={"known": ()})
    assert known_keys(fresh, state) == known_keys(fresh, whole)
    assert len(known_keys(fresh, state)) == 107
    assert len(fresh.version("main:100").state.known) <= 3
    assert len(state.known) <= 3 + 7
    assert (tmp_path / "s" / layout.head_hint("main")).read_text() == "100"


def test_totals_are_those_of_the_state(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    version = store.append([episode("a", 3), episode("b", 5)])
    assert (version.commit.totals.episodes, version.commit.totals.steps) == (2, 8)
    sizes = {path: path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file()}
    held = [size for path, size in sizes.items() if path.suffix in (".arrow", ".parquet")]
    assert version.commit.totals.bytes == sum(held)


# -- id indexes --------------------------------------------------------------------------------


def test_index_files_grow_with_the_logarithm_of_the_history() -> None:
    sizes: list[int] = []
    written = 0
    for commit in range(1, 20_001):
        sizes.append(16)
        if commit % CHECKPOINT_EVERY == 0:
            count = ids.mergeable(sizes)
            if count:
                sizes[-count:] = [sum(sizes[-count:])]
                written += sizes[-1]
        assert len(sizes) <= CHECKPOINT_EVERY + 10
    assert sum(sizes) == 16 * 20_000
    assert written <= 16 * 20_000 * 10, "each key is rewritten a bounded number of times"


def test_classify() -> None:
    digest = [f"{number:064x}" for number in range(1 << 60, (1 << 60) + 3)]
    one = ids.decode(ids.encode(ids.keys([("a", digest[0]), ("b", digest[0])])))
    two = ids.decode(ids.encode(ids.keys([("a", f"{7:016x}{0:048x}")])))
    asked = ids.keys(
        [("a", digest[0]), ("a", f"{9:016x}{0:048x}"), ("c", digest[0]), ("b", digest[0])]
    )
    for indexes in ([one, two], [two, one]):
        seen = ids.classify(indexes, asked).tolist()
        assert seen == [ids.Seen.KNOWN, ids.Seen.OTHER, ids.Seen.NEW, ids.Seen.KNOWN]
    assert ids.classify([], asked).tolist() == [ids.Seen.NEW] * 4
    assert len(ids.decode(ids.encode(np.concatenate([one, two, one])))) == 3
    assert ids.encode(ids.keys([])) == b""


def test_a_merge_of_a_missing_index_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "CHECKPOINT_EVERY", 3)
    store = store_on(LocalObjects(tmp_path / "s", QuickDisk()))
    store.append([episode("a")])
    store.append([episode("b")])
    (tmp_path / "s" / store.version().state.known[0].key).unlink()
    with pytest.raises(DamagedStoreError, match="came none"):
        open_store(tmp_path / "s").append([episode("c")])
    assert open_store(tmp_path / "s").version().number == 2


def test_a_commit_means_the_same_to_its_writer_and_to_others(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    source = SourceState(
        format="f",
        where="w",
        identity=None,
        fingerprint="1",
        metadata={"nan": float("nan"), "pair": (1, 2)},
    )
    operation = Append(sources={"w": source})
    commit = store.catalog.refs.publish(
        "main", lambda _head, _state: Draft((operation,)), message="", run_id="r"
    )
    assert commit is not None
    assert open_store(tmp_path / "s").version().commit == commit
    assert open_store(tmp_path / "s").version().state == store.version().state
