"""What is acknowledged is durable; what fails leaves the old version and says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import commit as protocol
from pipeline.store.disk import Disk
from pipeline.store.objects import TEMPORARY, LocalObjects
from pipeline.store.store import Store, open_store
from schemas.errors import AccessDeniedError, DiskFullError, TransientError
from tests.store.disks import DurableDisk, FailingDisk, quick_store, store_on
from tests.store.makers import episode, ids_of, names, quarantined, score

# -- order of syncs ----------------------------------------------------------------------------


def test_everything_is_durable_before_the_commit_that_names_it(tmp_path: Path) -> None:
    root = tmp_path / "new/s"
    disk = DurableDisk(root)
    store = store_on(LocalObjects(root, disk))
    assert not disk.lost, "a store that was opened is there after a power cut"
    acts: list[Callable[[], object]] = [
        lambda: store.append([LONG]),
        lambda: store.append([episode("a"), episode("b")]),
        lambda: store.append([episode("a", seed=1)]),
        lambda: score(store, {"a": 0.5}),
        lambda: store.version().where("episode_id == 'a'").commit(branch="c"),
        lambda: store.branch("d"),
        lambda: store.revert("main:1"),
        lambda: store.tag("t"),
        lambda: store.delete_branch("d"),
        lambda: store.delete_tag("t"),
    ]
    for act in acts:
        act()
        assert not disk.lost, "what was acknowledged is there after a power cut"
    assert len(disk.links) == 10
    for key, lost in disk.lost_at_link:
        assert lost == set(), f"{key} was made visible before what it needs was durable"


def test_folders_that_another_writer_has_just_made_are_synced_too(tmp_path: Path) -> None:
    root = tmp_path / "s"
    open_store(root, create=True)
    folders = ("tails", "episodes", "shards", "refs", "refs/branches", "refs/branches/main")
    for folder in folders:
        (root / folder).mkdir()
    disk = DurableDisk(root)
    disk.lost = {root / folder for folder in folders}
    store_on(LocalObjects(root, disk)).append([episode("long", 5000), episode("a", rewards=None)])
    assert disk.lost_at_link == [("refs/branches/main/000000000001.json", set())]


def test_the_real_disk_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    disk = Disk()
    disk.create(tmp_path / "file", b"x" * 10)
    disk.sync_dir(tmp_path)
    assert synced == [str(tmp_path / "file"), str(tmp_path)]
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "file", b"y")
    assert (tmp_path / "file").read_bytes() == b"x" * 10
    assert disk.link(tmp_path / "file", tmp_path / "other") is True
    assert disk.link(tmp_path / "file", tmp_path / "other") is False


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    Disk().create(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


# -- calls that fail ---------------------------------------------------------------------------


LONG = episode("long", 4500, columns={"x": 1})


def branched(store: Store) -> None:
    if "c" not in store.branches():  # a name is given once
        store.branch("c")


ACTS: dict[str, tuple[Callable[[Store], object], int]] = {
    "append": (lambda store: store.append([episode("b"), episode("a", seed=1)]), 1),
    "append a shard": (lambda store: store.append([LONG]), 9),
    "curate": (lambda store: store.version().where("length > 99").commit(branch="main"), 1),
    "measure": (lambda store: score(store, {"a": 0.5}), 1),
    "tag": (lambda store: store.tag("t"), 1),
    "branch": (branched, 1),
}
"""What is done, and each how many-th of its calls fails."""


def seen(root: Path) -> dict[str, list[str]]:
    """What a fresh reader sees: branches with their ids, and tags."""
    store = open_store(root)
    found = {f"branch {name}": ids_of(version) for name, version in store.branches().items()}
    for name in store.tags():
        found[f"tag {name}"] = ids_of(store.version(name))
    measured = sorted(store.version().state.metrics)
    return found | {"refused": [name for name, _ in quarantined(store)], "measured": measured}


@pytest.mark.parametrize("act", list(ACTS))
def test_each_call_failing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    monkeypatch.setattr(protocol, "CHECKPOINT_EVERY", 2)  # so that the head hint is written too
    run, step = ACTS[act]
    outcomes = []
    number, failed = 0, "none yet"
    while failed:
        root = tmp_path / f"s{number}"
        quick_store(root).append([episode("a")])
        old = seen(root)
        code = (errno.EIO, errno.ENOSPC)[number // step % 2]
        disk = FailingDisk(number, code, is_half_done=number % 3 == 0)
        error = attempt(lambda: run(store_on(LocalObjects(root, disk))))  # noqa: B023
        failed = disk.calls[number] if number < len(disk.calls) else ""
        before = disk.calls[:number]
        if error is not None:
            assert isinstance(error, DiskFullError) == (code == errno.ENOSPC)
            assert error.exit_code == 5
        # Nothing stands on the temporary name or on the head hint, which follows it.
        assert (error is None) == (failed in ("", "unlink") or "unlink" in before)
        if error is not None and "link" not in before:
            assert seen(root) == old, f"{failed} failed before the commit, yet something changed"
        assert failed == "unlink" or not list(root.rglob(f"{TEMPORARY}*"))
        if error is not None:
            run(quick_store(root))  # the advice is to run it again
        outcomes.append(seen(root))
        number += step
    assert len(outcomes) >= 5
    assert all(outcome == outcomes[-1] for outcome in outcomes)
    assert outcomes[-1] != old
    for episode_id in outcomes[-1]["branch main"]:
        open_store(root).version().episode(episode_id)


def attempt(run: Callable[[], object]) -> TransientError | None:
    try:
        run()
    except TransientError as error:
        return error
    return None


def test_reading_goes_on_while_writing_fails(tmp_path: Path) -> None:
    root = tmp_path / "s"
    open_store(root, create=True).append([episode(name) for name in names(3)])
    store = store_on(LocalObjects(root, FailingDisk(0)))
    with pytest.raises(TransientError, match="Could not write"):
        store.append([episode("x")])
    assert ids_of(store.version()) == names(3)
    np.testing.assert_array_equal(store.version().episode("e1").rewards, episode("e1").rewards)


def test_a_store_without_write_access_reads(tmp_path: Path) -> None:
    root = tmp_path / "s"
    open_store(root, create=True).append([episode(name) for name in names(3)])
    denied = FailingDisk(0, errno.EACCES)
    store = store_on(LocalObjects(root, denied), create=False)
    version = store.version()
    assert len(list(version.iter_episodes())) == 3
    assert version.query("SELECT count(*) AS n FROM episodes")["n"].to_pylist() == [3]
    assert denied.calls == [], "readers never write"
    with pytest.raises(AccessDeniedError, match="write access"):
        store.tag("t")
