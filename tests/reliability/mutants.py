"""Seeded mistakes: the store with one safeguard taken out, and the check that must notice it."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import (
    append,
    blocks,
    commit,
    compact,
    derive,
    erase,
    gc,
    marks,
    reach,
    repair,
    replace,
)
from pipeline.store.disk import Disk
from pipeline.store.objects import LocalObjects
from schemas.version import Compact
from tests.reliability.exploring import explore, record
from tests.reliability.protocols import PROTOCOLS, RACES, OverError, racing
from tests.reliability.test_syscalls import ACTS, fail
from tests.store import test_commit
from tests.store import test_maintenance_compact as compacting
from tests.store import test_maintenance_doctor as doctoring
from tests.store import test_maintenance_erase as erasing
from tests.store import test_maintenance_gc as collecting

Check = Callable[[Path], None]
"""A check of the suite; raises if the store under it makes the mistake."""


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    seed: Callable[[pytest.MonkeyPatch], None]
    check: Check


# -- checks ------------------------------------------------------------------------------------


def crashes(name: str) -> Check:
    """The crash states of a protocol."""

    def check(root: Path) -> None:
        explored = explore(record(root, PROTOCOLS[name]), 24, again_every=5)
        assert not explored.violations, explored.violations[0]

    return check


def crashes_in_race(name: str) -> Check:
    """The crash states of a race."""

    def check(root: Path) -> None:
        for at in itertools.count():
            folder = root / str(at)
            folder.mkdir()
            try:
                recording = record(folder, racing(*RACES[name], at))
            except OverError:
                return
            explored = explore(recording, 8)
            assert not explored.violations, explored.violations[0]

    return check


def short_writes(root: Path) -> None:
    """A write of an append that is cut short."""
    assert fail(root, ACTS["append"], 0, None) is False


def plainly(check: Callable[[], None]) -> Check:
    """A test that needs nothing."""
    return lambda _root: check()


def damaged(name: str, check: Callable[[Path, str], None]) -> Check:
    """A test of a damaged store."""
    return lambda root: check(doctoring.grown(root), name)


# -- mistakes ----------------------------------------------------------------------------------


def put(target: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Puts one function in the place of another."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


def create_without_sync(_disk: Disk, path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(handle, data)
    os.close(handle)


def create_with_one_write(_disk: Disk, path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(handle, data)
    os.fsync(handle)
    os.close(handle)


def skip_sync_of(*folders: str) -> Callable[[pytest.MonkeyPatch], None]:
    real = Disk.sync_dir

    def sync_dir(disk: Disk, path: Path) -> None:
        if not str(path).endswith(folders):
            real(disk, path)

    return put(Disk, "sync_dir", sync_dir)


def skip_sync_of_parents() -> Callable[[pytest.MonkeyPatch], None]:
    real = LocalObjects._sync

    def sync(objects: LocalObjects, _made: set[Path], touched: Iterable[Path] = ()) -> None:
        real(objects, set(), touched)

    return put(LocalObjects, "_sync", sync)


def link_over(_disk: Disk, path: Path, name: Path) -> bool:
    path.replace(name)
    return True


def create_in_place(objects: LocalObjects, key: str, data: bytes) -> bool:
    path = objects.root / key
    if path.exists():
        return False
    objects._sync(objects._make_folders(path.parent))
    objects._disk.create(path, data)
    objects._disk.sync_dir(path.parent)
    return True


def commit_first() -> Callable[[pytest.MonkeyPatch], None]:
    """Rows are written after the commit that names them."""
    real_put, real_create = LocalObjects.put, LocalObjects.put_if_absent
    waiting: list[tuple[LocalObjects, dict[str, bytes]]] = []

    def wait(objects: LocalObjects, files: Mapping[str, bytes]) -> None:
        waiting.append((objects, dict(files)))

    def create(objects: LocalObjects, key: str, data: bytes) -> bool:
        created = real_create(objects, key, data)
        while waiting:
            real_put(*waiting.pop(0))
        return created

    def seed(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalObjects, "put", wait)
        monkeypatch.setattr(LocalObjects, "put_if_absent", create)

    return seed


def deduplicate_once() -> Callable[[pytest.MonkeyPatch], None]:
    real = append._Planner.review
    first: dict[int, Any] = {}

    def review(planner: Any, state: Any) -> Any:
        return first.setdefault(id(planner), (planner, real(planner, state)))[1]

    return put(append._Planner, "review", review)


def sweep_without_grace() -> Callable[[pytest.MonkeyPatch], None]:
    real = gc.sweep
    return put(gc, "sweep", lambda where, _grace: real(where, dt.timedelta(0)))


def mark_without_grace() -> Callable[[pytest.MonkeyPatch], None]:
    real = gc._doomed
    return put(gc, "_doomed", lambda where, _grace: real(where, dt.timedelta(0)))


def sweep_without_second_look() -> Callable[[pytest.MonkeyPatch], None]:
    real = gc.sweep

    def sweep(where: Any, grace: dt.timedelta) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gc, "reachable", lambda _where: set())
            return real(where, grace)

    return put(gc, "sweep", sweep)


def unverified(_file: Any, data: bytes) -> bytes:
    return data


def skip_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "check", unverified)


def forget_other_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost reply is taken for a lost race, and nobody looks for the job's own commit."""
    monkeypatch.setattr(commit.Refs, "_is_own", lambda *_: False)
    monkeypatch.setattr(commit, "RETRY_SECONDS", 0.2)
    real = commit.Refs.publish

    def publish(refs: Any, branch: str, plan: Any, *, run_id: str, **more: Any) -> Any:
        return real(refs, branch, plan, run_id=_Nobody(run_id), **more)

    monkeypatch.setattr(commit.Refs, "publish", publish)


def commits_up_to_the_head(where: Any, branch: str) -> list[Any]:
    head = where.refs.head(branch)
    return [where.refs.read(branch, n) for n in range(1, head.number + 1 if head else 1)]


def compact_over(run: Any, merged: Any) -> Any:
    """Plans a compaction without a look at what its parts are now."""
    operation = Compact(removed=tuple(part.id for part in run), added=merged)
    return lambda _head, _state: commit.Draft((operation,))


class _Nobody(str):
    """A name that equals no other."""

    __slots__ = ()

    def __eq__(self, _other: object) -> bool:
        return False

    def __ne__(self, _other: object) -> bool:
        return True

    __hash__ = str.__hash__


MUTANTS: dict[str, Mutant] = {
    "no sync of a file": Mutant(put(Disk, "create", create_without_sync), crashes("append")),
    "a short write taken for a whole": Mutant(
        put(Disk, "create", create_with_one_write), short_writes
    ),
    "no sync of the branch's folder": Mutant(skip_sync_of("branches/main"), crashes("append")),
    "no sync of the tags' folder": Mutant(skip_sync_of("refs/tags"), crashes("names")),
    "no sync of the data's folders": Mutant(skip_sync_of("tails", "episodes"), crashes("append")),
    "no sync of a new folder's parent": Mutant(skip_sync_of_parents(), crashes("append")),
    "a commit that is not exclusive": Mutant(
        put(Disk, "link", link_over), crashes_in_race("other ids")
    ),
    "a commit written in place": Mutant(
        put(LocalObjects, "put_if_absent", create_in_place), crashes("append")
    ),
    "the commit before its data": Mutant(commit_first(), crashes("append")),
    "no comparison of ids after a lost race": Mutant(
        put(commit.Refs, "_is_own", lambda *_: True), crashes_in_race("other ids")
    ),
    "a lost reply taken for a lost race": Mutant(
        forget_other_commits, test_commit.test_a_lost_reply_is_recognised_as_own
    ),
    "no deduplication after a lost race": Mutant(
        deduplicate_once(), crashes_in_race("some of the same ids")
    ),
    "building on what may be lost": Mutant(
        put(commit.Refs, "settle", lambda *_: None), crashes_in_race("the same ids")
    ),
    "tags of what may be lost": Mutant(
        put(commit.Refs, "settle", lambda *_: None), crashes_in_race("a tag")
    ),
    "no checksums": Mutant(
        skip_checksums, damaged("a bit flipped in a tail", doctoring.judge_damage)
    ),
    "marking without grace": Mutant(
        mark_without_grace(),
        plainly(collecting.test_only_what_is_older_than_the_grace_is_marked_and_swept),
    ),
    "sweeping without grace": Mutant(
        sweep_without_grace(),
        plainly(collecting.test_only_what_is_older_than_the_grace_is_marked_and_swept),
    ),
    "no look at the marks at a commit": Mutant(
        put(marks.Marks, "refuse", lambda *_: None),
        plainly(lambda: collecting.test_a_job_longer_than_the_grace_is_refused(2)),
    ),
    "no look at the marks at a tag": Mutant(
        put(marks.Marks, "refuse", lambda *_: None),
        plainly(collecting.test_a_tag_or_branch_of_an_expired_version_is_refused),
    ),
    "no second look before the sweep": Mutant(
        sweep_without_second_look(),
        plainly(collecting.test_the_sweep_keeps_what_a_commit_came_to_need),
    ),
    "marks that are never taken back": Mutant(
        put(gc, "_unmark", lambda *_: None),
        plainly(collecting.test_the_sweep_keeps_what_a_tag_came_to_need),
    ),
    "no regard for leases": Mutant(
        put(gc, "_protected_since", lambda _: None),
        plainly(collecting.test_a_job_under_a_lease_commits_however_long_it_takes),
    ),
    "no regard for tags": Mutant(
        put(derive, "tags", lambda _: {}),
        plainly(collecting.test_expired_versions_go_but_for_those_of_tags_and_runs),
    ),
    "no regard for runs": Mutant(
        put(reach, "run_versions", lambda _: []),
        plainly(collecting.test_expired_versions_go_but_for_those_of_tags_and_runs),
    ),
    "no regard for gaps": Mutant(
        put(reach, "branch_commits", commits_up_to_the_head),
        damaged("a commit missing", doctoring.judge_that_nothing_goes),
    ),
    "a compaction over what changed": Mutant(
        put(compact, "_plan", compact_over),
        plainly(lambda: compacting.test_a_selection_meanwhile_wins("episode_id == 'e1'")),
    ),
    "a scrub that does not finish a dead one's work": Mutant(
        put(erase, "_delete_replaced", lambda _: []), crashes("erase")
    ),
    "a scrub that blanks nothing": Mutant(
        put(erase, "_padded", lambda array, _where: array.copy()),
        erasing.test_rows_that_a_lost_race_left_in_a_block_go_too,
    ),
    "scores that stay with a name": Mutant(
        put(replace, "silenced", lambda *_: ()), crashes("replace")
    ),
    "a repair that leaves gaps": Mutant(
        put(repair, "_fill", lambda *_: None),
        damaged("a commit missing", doctoring.judge_damage),
    ),
    "a repair that forgets ids": Mutant(
        put(repair._Remains, "_known", lambda *_: ()),
        damaged("a tail gone", doctoring.judge_work_after),
    ),
}
