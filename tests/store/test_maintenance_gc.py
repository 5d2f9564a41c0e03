"""Collection never takes what a commit, a tag, a run or a job at work needs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store import commit as protocol
from pipeline.store import layout, leases, runs
from pipeline.store.append import Outcome, commit_batch, write_new
from pipeline.store.catalog import Catalog
from pipeline.store.gc import GRACE
from pipeline.store.store import Store, open_store
from pipeline.store.writer import rows_of
from schemas.episode import Episode
from schemas.errors import FilesExpiredError, LockHeldError, NameTakenError
from tests.reliability.memory import MemoryObjects, memory_store
from tests.store.makers import episode, ids_of, names, read_everything

AT_ONCE = dt.timedelta(0)
DAY_AND_MORE = 25.0  # hours


def new(*names: str) -> list[Episode]:
    return [episode(name) for name in names]


def job(store: Store, *names: str) -> Callable[[], Outcome]:
    """A job that has written its files and has yet to commit them."""
    batch = write_new(store.catalog, "main", rows_of(new(*names)))
    return lambda: commit_batch(
        store.catalog, batch, branch="main", message="late", run_id=layout.new_id()
    )


def again(objects: MemoryObjects) -> Store:
    return Store(Catalog(objects, create=False))


def data_keys(objects: MemoryObjects) -> set[str]:
    return {key for key in objects.files if key.split("/")[0] in layout.DATA}


# -- jobs at work ------------------------------------------------------------------------------


@pytest.mark.parametrize("collections", [1, 2])
def test_a_job_longer_than_the_grace_is_refused(collections: int) -> None:
    store, objects = memory_store()
    store.append(new("a"))
    commit = job(store, "b")
    for _ in range(collections):  # marked, then swept
        objects.wait(DAY_AND_MORE)
        store.gc()
    with pytest.raises(FilesExpiredError, match="run the job again, under a lease"):
        commit()
    assert ids_of(again(objects).version()) == ["a"]
    assert store.append(new("b")).number == 2
    read_everything(again(objects))


def test_a_job_under_a_lease_commits_however_long_it_takes() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    with leases.lease(objects, length=dt.timedelta(days=9)):
        commit = job(store, "b")
        for _ in range(4):
            objects.wait(DAY_AND_MORE)
            assert store.gc().deleted == ()
        commit()
    assert ids_of(again(objects).version()) == ["a", "b"]
    read_everything(again(objects))


def test_a_lease_that_begins_after_the_mark_protects_what_comes_after_it() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    job(store, "lost")
    objects.wait(DAY_AND_MORE)
    assert store.gc().marked
    with leases.lease(objects, length=dt.timedelta(days=9)):
        commit = job(store, "b")
        objects.wait(DAY_AND_MORE)
        assert store.gc().deleted, "the lease is no reason to keep what was there before"
        commit()
    read_everything(again(objects))


def test_a_version_under_a_lease_is_kept() -> None:
    store, objects = memory_store()
    first = store.append(new("a", "b"))
    store.append(new("c"))
    store.compact(everything=True)
    with leases.lease(objects, first.commit.ref, length=dt.timedelta(days=9)):
        store.expire(before=store.version().number)
        for _ in range(3):
            objects.wait(DAY_AND_MORE)
            store.gc()
        read_everything(again(objects), ["main:1", "main"])
    for _ in range(2):
        objects.wait(DAY_AND_MORE)
        store.gc()
    with pytest.raises(FilesExpiredError):
        read_everything(again(objects), ["main:1"])


def test_a_dead_lease_protects_nothing_and_the_doctor_lists_it() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    dead = leases.Lease(
        id="0" * 32,
        holder="gone:1",
        created_at=objects.now(),
        expires_at=objects.now() + leases.LEASE,
    )
    objects.put_if_absent(layout.lease(dead.id), dead.model_dump_json().encode())
    job(store, "orphan")
    objects.wait(DAY_AND_MORE)
    found = store.doctor()
    assert {problem.code for problem in found.problems} == {"orphan", "dead_lease"}
    assert found.damage == []
    assert store.gc().marked


# -- ages --------------------------------------------------------------------------------------


def test_only_what_is_older_than_the_grace_is_marked_and_swept() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    before = data_keys(objects)
    job(store, "orphan")
    orphans = data_keys(objects) - before
    objects.wait(23)
    assert store.gc().marked == ()
    objects.wait(2)
    assert set(store.gc().marked) == orphans
    objects.wait(23)
    assert store.gc().deleted == ()
    objects.wait(2)
    swept = store.gc()
    assert set(swept.deleted) == orphans
    assert swept.bytes > 0
    assert data_keys(objects) == before


def test_a_dry_run_changes_nothing() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    job(store, "orphan")
    objects.wait(DAY_AND_MORE)
    before = dict(objects.files)
    told = store.gc(dry_run=True)
    assert len(told.marked) == 1
    assert told.bytes == len(objects.files[told.marked[0]])
    assert objects.files == before
    assert store.gc().marked == told.marked
    assert store.gc(dry_run=True).marked == (), "marked once is enough"


def test_whole_shards_go(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a", 5000)])
    kept = {path.parent for path in (tmp_path / "s/shards").rglob("*") if path.is_file()}
    job_ = [episode("b", 5000)]
    write_new(store.catalog, "main", rows_of(job_))
    store.gc(AT_ONCE)
    store.gc(AT_ONCE)
    left = {path.parent for path in (tmp_path / "s/shards").rglob("*") if path.is_file()}
    assert left == kept
    read_everything(open_store(tmp_path / "s"))


# -- what comes between mark and sweep ---------------------------------------------------------


class Meanwhile(MemoryObjects):
    """Lets something happen just before an object is created."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], object]] = {}

    def put_if_absent(self, key: str, data: bytes) -> bool:
        for start in [start for start in self.before if key.startswith(start)]:
            self.before.pop(start)()
        return super().put_if_absent(key, data)


def test_the_sweep_keeps_what_a_commit_came_to_need() -> None:
    objects = Meanwhile()
    store = Store(Catalog(objects, create=True))
    store.append(new("a"))
    commit = job(store, "b")
    objects.wait(DAY_AND_MORE)
    # Marked after the commit had looked for marks, and before it was made.
    objects.before["refs/branches"] = lambda: again(objects).gc()
    commit()
    assert again(objects).catalog.marks.all()
    objects.wait(DAY_AND_MORE)
    assert again(objects).gc().deleted == ()
    assert ids_of(again(objects).version()) == ["a", "b"]
    read_everything(again(objects))
    # What the sweep has kept is doomed no longer: names may refer to it again.
    again(objects).branch("side")
    again(objects).tag("t")
    objects.wait(DAY_AND_MORE)
    again(objects).gc()
    read_everything(again(objects), ["main", "side", "t"])


def test_the_sweep_keeps_what_a_tag_came_to_need() -> None:
    objects = Meanwhile()
    store = Store(Catalog(objects, create=True))
    store.append(new("a"))
    store.append(new("b"))
    store.compact(everything=True)
    store.expire(before=store.version().number)
    objects.wait(DAY_AND_MORE)
    objects.before["refs/tags"] = lambda: again(objects).gc()
    store.tag("t", "main:1")
    for _ in range(3):
        objects.wait(DAY_AND_MORE)
        again(objects).gc()
    assert ids_of(again(objects).version("t")) == ["a"]
    read_everything(again(objects), ["main", "t"])
    again(objects).branch("from-t", "t")


# -- expiry ------------------------------------------------------------------------------------


def grown() -> tuple[Store, MemoryObjects]:
    """Version 1 holds a and is tagged, 3 holds b and is read by a run, 7 holds c and d anew."""
    store, objects = memory_store()
    store.tag("gold", store.append(new("a")))
    store.append(new("b"))
    read = store.remove("episode_id == 'a'")
    runs.refer(store.catalog, "r1", 0, [read.commit], [{}])
    store.append(new("c"))
    store.append(new("d"))
    store.remove("episode_id == 'b'")
    store.compact(everything=True)
    assert store.version().number == 7
    return store, objects


def collected(store: Store, objects: MemoryObjects) -> None:
    for _ in range(2):
        objects.wait(DAY_AND_MORE)
        store.gc()


def test_all_versions_are_kept_by_default() -> None:
    store, objects = grown()
    collected(store, objects)
    read_everything(again(objects), [f"main:{number}" for number in range(1, 8)])


def test_expired_versions_go_but_for_those_of_tags_and_runs() -> None:
    store, objects = grown()
    expired = store.expire(before=7)
    assert expired.number == 8
    collected(store, objects)
    read_everything(again(objects), ["main", "main:7", "gold", "main:1", "main:3"])
    with pytest.raises(FilesExpiredError, match="expired"):
        read_everything(again(objects), ["main:5"])
    assert [version.number for version in again(objects).log()] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert again(objects).doctor().damage == []


def test_a_tag_or_branch_of_an_expired_version_is_refused() -> None:
    store, objects = grown()
    store.expire(before=7)
    objects.wait(DAY_AND_MORE)
    store.gc()  # marked only: the files are still there
    for _ in range(2):
        with pytest.raises(FilesExpiredError, match="marked for deletion"):
            store.tag("late", "main:5")
        with pytest.raises(FilesExpiredError):
            store.branch("late", "main:5")
        with pytest.raises(FilesExpiredError):
            store.revert("main:5")
        assert "late" not in {**store.tags(), **store.branches()}
        objects.wait(DAY_AND_MORE)
        store.gc()  # gone


def test_what_a_deleted_tag_held_goes() -> None:
    store, objects = grown()
    store.expire(before=7)
    collected(store, objects)
    store.delete_tag("gold")
    del objects.files["refs/runs/r1/000000000000.json"]
    before = data_keys(objects)
    collected(store, objects)
    assert data_keys(objects) < before
    read_everything(again(objects))


def test_a_closed_branch_keeps_its_newest_version_and_its_name() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    store.branch("side")
    rival = again(objects)
    rival.append(new("b"), branch="side")  # knows the head of the branch
    store.delete_branch("side")
    with pytest.raises(NameTakenError, match="closed"):
        rival.append(new("c"), branch="side")
    with pytest.raises(NameTakenError):
        rival.branch("side")
    collected(store, objects)
    read_everything(again(objects), ["side:2"])


def test_a_hint_that_lies_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CHECKPOINT_EVERY", 4)
    store, objects = memory_store()
    for name in names(10):
        store.append(new(name))
    for hint in (b"1", b"7", b"99", b"-1", b"", b"x"):
        objects.overwrite(layout.head_hint("main"), hint)
        collected(again(objects), objects)
        assert ids_of(again(objects).version()) == names(10)
        read_everything(again(objects), [f"main:{number}" for number in range(1, 11)])


# -- turns -------------------------------------------------------------------------------------


def test_one_maintainer_at_a_time() -> None:
    store, objects = memory_store()
    store.append(new("a"))
    store.append(new("b"))
    store.erase(["a"])
    with leases.turn(objects, leases.MAINTAINER):
        with pytest.raises(LockHeldError, match="try again later"):
            store.compact(everything=True)
        with pytest.raises(LockHeldError):
            store.gc(erase=True)
    assert len(store.compact(everything=True).commits) == 1
    store.gc(erase=True)
    assert len(list(objects.names(f"leases/{leases.MAINTAINER}"))) <= 3, "old turns are removed"


def test_the_turn_of_the_dead_ends() -> None:
    _, objects = memory_store()
    held = leases.turn(objects, "role")
    held.__enter__()
    with pytest.raises(LockHeldError), leases.turn(objects, "role"):
        pass
    objects.wait(1)
    with leases.turn(objects, "role"):
        held.__exit__(None, None, None)  # he was only slow: his end is not the end of mine
        with pytest.raises(LockHeldError), leases.turn(objects, "role"):
            pass
    with leases.turn(objects, "role"):
        pass


def test_grace_is_a_day_by_default() -> None:
    assert dt.timedelta(hours=24) == GRACE
