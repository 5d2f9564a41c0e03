"""Linked blocks in a store: read within bounds, erased, left alone by maintenance, materialised."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors import linked as connectors
from connectors.base import Unit
from pipeline.jobs import engines
from pipeline.store import linked
from pipeline.store.layout import new_id
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, open_store
from schemas.errors import (
    DamagedStoreError,
    LinkedSourceChangedError,
    LockHeldError,
    SourceError,
    TransientError,
    UnknownNameError,
)
from schemas.identity import digest
from schemas.jobs import IngestJob
from schemas.link import LinkedUnit
from tests.episodes import write_d4rl
from tests.store.disks import Interrupted, store_on
from tests.store.makers import episode, hashes, ids_of


def link(store: Path, *sources: Path, **options: Any) -> Store:
    job = IngestJob(
        sources=tuple(map(str, sources)), into=str(store), run_id=new_id(), link=True, **options
    )
    engines.run(job, None)
    return open_store(store)


def digests(store: Store, ref: str = "main") -> list[str]:
    return [digest(one) for one in store.version(ref).iter_episodes()]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    linked.forget()
    yield
    linked.forget()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_d4rl(tmp_path / "a.hdf5", [5, 6, 7])


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Store:
    return link(tmp_path / "s", source)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that a unit is read."""
    seen: list[str] = []
    real = connectors.episodes

    def noting(unit: LinkedUnit) -> Any:
        seen.append(unit.where)
        return real(unit)

    monkeypatch.setattr(connectors, "episodes", noting)
    return seen


# -- reading -------------------------------------------------------------------------------------


def test_rows_are_cut_and_named_as_those_of_other_blocks(store: Store) -> None:
    version = store.version()
    ((block,),) = (part.blocks for part in version.state.parts)
    whole = version.read_rows(block.id)
    assert block.rows == len(whole["valid"]) == 21
    assert whole["valid"].sum() == 18
    np.testing.assert_array_equal(np.flatnonzero(~whole["valid"]), [5, 12, 20])
    assert np.isnan(whole["actions"][5]).all()
    some = store.catalog.read_block(block, ["actions"], slice(6, 12))
    assert set(some) == {"actions"}
    np.testing.assert_array_equal(some["actions"], whole["actions"][6:12])
    with pytest.raises(UnknownNameError, match="actions"):
        version.read_rows(block.id, ["action"])


def test_a_unit_is_read_once_while_its_file_stays(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(monkeypatch)
    rows = store.version().read_rows(store.version().index().data_ids[0])
    rows["actions"][:] = 0  # what a reader does with its rows is his business
    for one in store.version().iter_episodes():
        assert np.any(one.flat_actions["actions"])
        assert digest(store.version().episode(one.episode_id)) == digest(one)
    assert len(seen) == 1
    os.utime(source)
    digests(store)
    assert len(seen) == 2


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [write_d4rl(tmp_path / f"{n}.hdf5", [50], seed=n) for n in range(4)]
    store = link(tmp_path / "s", *sources)
    seen = reads(monkeypatch)
    one_block = 51 * (4 * (4 + 2 + 1) + 4)
    monkeypatch.setattr(linked, "KEEP_BYTES", 2 * one_block)
    digests(store)
    assert len(seen) == 4
    digests(store)
    assert len(seen) == 8, "the first ones went to make room"
    names = store.version().index().data_ids
    store.version().read_rows(names[3])
    store.version().read_rows(names[2])
    assert len(seen) == 8, "the last two are there"
    monkeypatch.setattr(linked, "KEEP_BYTES", 0)
    store.version().read_rows(names[0])
    store.version().read_rows(names[0])
    assert len(seen) == 9, "one block is kept whatever its size"


def test_an_open_store_travels_to_other_processes(store: Store) -> None:
    travelled = Store(pickle.loads(pickle.dumps(store.catalog)))
    assert digests(travelled) == digests(store)


def test_a_link_to_something_that_runs_is_refused(store: Store) -> None:
    unit = LinkedUnit(format="gymnasium", where="Pendulum-v1?episodes=1", start=0, stop=1, steps=1)
    with pytest.raises(SourceError, match="format of files"):
        list(connectors.episodes(unit))
    with pytest.raises(SourceError, match="format of files"):
        connectors.look_first(unit)


def test_units_are_kept_as_any_process_can_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    options = {"rows": [0, 5], "url_state": "x"}
    kept = connectors.placed(Unit("d4rl", "data/a.hdf5", 0, 1, 5, options))
    assert (kept.where, kept.options) == ("/data/a.hdf5", {"rows": [0, 5]})
    assert connectors.placed(Unit("d4rl", "s3://b/a", 0, 1, 5)).where == "s3://b/a"
    assert connectors.placed(Unit("d4rl", "file:///b/a", 0, 1, 5)).where == "/b/a"


def test_a_file_that_changes_while_it_is_linked(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = connectors.files_of
    calls: list[str] = []

    def growing(where: str) -> Any:
        calls.append(where)
        if len(calls) == 2:
            os.utime(where)
        return real(where)

    monkeypatch.setattr(connectors, "files_of", growing)
    with pytest.raises(SourceError, match="while it is linked"):
        link(tmp_path / "t", source)
    with pytest.raises(Exception, match="without any"):
        open_store(tmp_path / "t").version()


# -- maintenance -----------------------------------------------------------------------------------


def test_gc_and_compaction_leave_links_and_sources_alone(
    store: Store, source: Path, tmp_path: Path
) -> None:
    import datetime as dt

    before = source.read_bytes()
    for number in range(3):
        store.append([episode(f"e{number}")], new_spec="other")
    store.compact(everything=True)
    parts = store.version().state.parts
    assert [(part.kind, part.episodes) for part in parts] == [("linked", 3), ("stored", 3)]
    kept = hashes(tmp_path / "s" / "links")
    for _ in range(2):
        store.gc(dt.timedelta(0))
    assert hashes(tmp_path / "s" / "links") == kept
    assert source.read_bytes() == before
    # Once no version links, the links go, and the source stays.
    store.materialise()
    store.expire(before=store.version().number)
    for _ in range(2):
        store.gc(dt.timedelta(0))
    assert hashes(tmp_path / "s" / "links") == {}
    assert source.read_bytes() == before
    assert len(digests(store)) == 6


def test_an_orphaned_link_is_found_and_goes(store: Store, tmp_path: Path) -> None:
    import datetime as dt

    store.catalog.objects.put({f"links/{new_id()}.json": b"{}"})
    assert [problem.code for problem in store.doctor().problems] == ["orphan"]
    for _ in range(2):
        store.gc(dt.timedelta(0))
    assert store.doctor().problems == []


def test_an_erased_episode_leaves_the_link_and_stays_in_its_file(
    store: Store, source: Path, tmp_path: Path
) -> None:
    first, second, third = ids_of(store.version())
    kept = digests(store)
    assert store.linked_places([second]) == [str(source)]
    store.erase([second])
    assert digests(store) == [kept[0], kept[2]]
    gone = store.gc(erase=True).deleted
    assert any(key.startswith("links/") for key in gone)
    text = b"".join(path.read_bytes() for path in (tmp_path / "s" / "links").iterdir())
    assert kept[1].encode() not in text
    assert kept[0].encode() in text
    again = open_store(tmp_path / "s")
    linked.forget()
    assert digests(again) == [kept[0], kept[2]]
    assert again.doctor().damage == []
    assert again.linked_places([first, third]) == [str(source)]
    # What was erased is padding, whatever the file holds; a copy does not bring it back.
    ((block,),) = (part.blocks for part in again.version().state.parts)
    rows = again.catalog.read_block(block)
    assert not rows["valid"][6:13].any()
    assert np.isnan(rows["observations"][6:13]).all()
    again.materialise()
    assert digests(again) == [kept[0], kept[2]]
    assert again.gc(erase=True).deleted == ()


def test_a_damaged_link_is_damage(store: Store, tmp_path: Path) -> None:
    ((block,),) = (part.blocks for part in store.version().state.parts)
    path = tmp_path / "s" / block.file.key
    path.write_bytes(path.read_bytes()[:-5])
    fresh = open_store(tmp_path / "s")
    with pytest.raises(DamagedStoreError, match="bytes"):
        digests(fresh)
    assert {problem.code for problem in fresh.doctor().damage} == {"bad_file"}


# -- materialising ---------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ends a process at once, as far as a test can."""


def test_a_crash_before_the_commit_leaves_the_version_as_it_was(
    store: Store, tmp_path: Path
) -> None:
    before = digests(store)

    def stop() -> None:
        raise Stopped

    objects = Interrupted(tmp_path / "s", "refs/branches", stop)
    with pytest.raises(Stopped):
        store_on(objects, create=False).materialise()
    again = open_store(tmp_path / "s")
    assert again.version().number == 1
    assert again.version().state.parts[0].kind == "linked"
    assert digests(again) == before
    assert {problem.code for problem in again.doctor().problems} == {"orphan"}
    assert again.materialise().commit.number == 2
    assert digests(again) == before


def test_others_commit_meanwhile(store: Store, tmp_path: Path) -> None:
    def append() -> None:
        open_store(tmp_path / "s").append([episode("late")], new_spec="other")

    racing = store_on(Interrupted(tmp_path / "s", "refs/branches/main", append), create=False)
    done = racing.materialise()
    assert done.commit.number == 3
    version = open_store(tmp_path / "s").version()
    assert [(part.kind, part.episodes) for part in version.state.parts] == [
        ("stored", 3),
        ("stored", 1),
    ]
    # What chose from the same parts meanwhile is not overruled.
    link(tmp_path / "s", write_d4rl(tmp_path / "b.hdf5", [4, 5], seed=3))

    def remove() -> None:
        open_store(tmp_path / "s").remove("length == 4")

    racing = store_on(Interrupted(tmp_path / "s", "refs/branches/main", remove), create=False)
    with pytest.raises(TransientError, match="run it again"):
        racing.materialise()
    assert open_store(tmp_path / "s").materialise().episodes == 1


def test_one_maintainer_at_a_time(store: Store, tmp_path: Path) -> None:
    from pipeline.store import leases

    objects = LocalObjects(tmp_path / "s")
    with leases.turn(objects, leases.MAINTAINER), pytest.raises(LockHeldError):
        store.materialise()
    assert store.materialise().episodes == 3


def test_a_mismatch_commits_nothing(store: Store, source: Path, tmp_path: Path) -> None:
    digests(store)
    write_d4rl(source, [5, 6, 7], seed=9)
    with pytest.raises(LinkedSourceChangedError):
        store.materialise()
    with pytest.raises(LinkedSourceChangedError):
        store.materialise("main", branch="copy")
    assert list(open_store(tmp_path / "s").branches()) == ["main"]
    assert open_store(tmp_path / "s").version().number == 1


def test_only_what_a_version_keeps_is_copied(store: Store, tmp_path: Path) -> None:
    kept = store.version().where("length != 6").commit("some")
    seen: list[tuple[int, int]] = []
    done = store.materialise("some", advance=lambda episodes, steps: seen.append((episodes, steps)))
    assert (done.episodes, done.steps) == (2, 12)
    assert seen == [(1, 5), (1, 7)]
    assert digests(store, "some") == [digest(one) for one in kept.iter_episodes()]
    assert sum(block.rows for p in store.version("some").state.parts for block in p.blocks) == 14
    assert store.version("main").state.parts[0].kind == "linked"
