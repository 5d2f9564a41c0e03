"""Erased episodes are nowhere: in no version at once, in no file after a scrub."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.append import commit_batch, write_new
from pipeline.store.catalog import Catalog
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, open_store
from pipeline.store.writer import rows_of
from schemas.episode import Episode
from schemas.errors import NotFoundError
from tests.store.makers import episode, hashes, ids_of, names, quarantined, read_everything, score
from tests.strategies import assert_same_episode

AT_ONCE = dt.timedelta(0)
SECRET = "unspeakable-name"


def secret(steps: int = 7, *, seed: int = 0) -> Episode:
    return episode(SECRET, steps, seed=seed, task="hush-hush", columns={"who": "nobody-else"})


def needles(one: Episode) -> list[bytes]:
    """Texts and stretches of numbers that only this episode has."""
    texts = [SECRET.encode(), b"hush-hush", b"nobody-else"]
    arrays = [one.arrays[name] for name in ("observations/state", "actions", "rewards")]
    return texts + [array.tobytes()[:24] for array in arrays]


def found_in(root: Path, one: Episode) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): needle
        for path in root.rglob("*")
        if path.is_file()
        for needle in needles(one)
        if needle in path.read_bytes()
    }


def everything(store: Store, refs: list[str]) -> dict[str, list[Episode]]:
    return {
        ref: [one for one in store.version(ref).iter_episodes() if one.episode_id != SECRET]
        for ref in refs
    }


def assert_same(before: dict[str, list[Episode]], after: dict[str, list[Episode]]) -> None:
    for ref, episodes in before.items():
        for one, other in zip(episodes, after[ref], strict=True):
            assert_same_episode(one, other)


@pytest.fixture
def full(tmp_path: Path) -> tuple[Store, list[str]]:
    """A store that holds the episode in many ways, and its versions."""
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a"), secret(), episode("b")])
    store.append([episode("c")])
    score(store, {"a": 0.5, SECRET: 1.5}, extra={"remark": ["fine", "nobody-else"]})
    store.append([secret(seed=1)])  # refused, and listed as such
    store.tag("gold", "main:1")
    store.version().where("length > 3").commit(branch="some")
    store.branch("side", "main:2")
    store.append([episode("d")], branch="side")
    store.compact(everything=True)
    refs = [*(f"main:{n}" for n in range(1, store.version().number + 1)), "gold", "some", "side"]
    return store, refs


def test_readers_subtract_at_once(full: tuple[Store, list[str]]) -> None:
    store, refs = full
    before = everything(store, refs)
    other = open_store(store.url)
    assert SECRET in ids_of(other.version())
    files = hashes(Path(store.url))
    assert store.erase([SECRET]) == 1
    after = hashes(Path(store.url))
    assert {name: after[name] for name in files} == files
    for reader in (store, other, open_store(store.url)):
        for ref in refs:
            assert SECRET not in ids_of(reader.version(ref)), ref
            with pytest.raises(NotFoundError):
                reader.version(ref).episode(SECRET)
            assert SECRET not in set(reader.version(ref).index().episode_ids)
        assert_same(before, everything(reader, refs))


def test_a_scrub_leaves_no_byte(full: tuple[Store, list[str]]) -> None:
    store, refs = full
    root = Path(store.url)
    before = everything(store, refs)
    gone = secret()
    assert len(set(found_in(root, gone).values())) > 1, "the search finds it before"
    other = open_store(store.url)
    read_everything(other, refs)
    store.erase([SECRET])
    collected = store.gc(AT_ONCE, erase=True)
    assert collected.deleted
    store.gc(AT_ONCE, erase=True)
    assert found_in(root, gone) == {}
    for reader in (store, other, open_store(store.url)):
        assert_same(before, everything(reader, refs))
    assert open_store(store.url).doctor().damage == []
    assert SECRET not in {name for name, _ in quarantined(store)}
    assert store.append([secret()]).number == store.version().number, "its id stays known"
    store.gc(AT_ONCE, erase=True)
    assert found_in(root, gone) == {}


def test_a_scrub_of_a_shard_leaves_no_byte(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    gone = secret(3000)
    store.append([episode("a", 2000), gone, episode("b", 200)])
    before = everything(store, ["main"])
    open_ = open_store(store.url)
    read_everything(open_)
    store.erase([SECRET])
    store.gc(AT_ONCE, erase=True)
    store.gc(AT_ONCE)
    assert store.version().state.parts[0].blocks[0].container == "shard"
    for reader in (open_, open_store(store.url)):
        assert_same(before, everything(reader, ["main"]))
        block = reader.version().index().data_ids[0]
        rows = reader.version().read_rows(block)
        lost = slice(2001, 2001 + 3001)
        assert np.isnan(rows["observations/state"][lost]).all()
        assert not rows["valid"][lost].any()
        assert reader.version().data_rows(block) == 2001 + 3001 + 201
    assert found_in(tmp_path / "s", gone) == {}
    assert store.doctor().damage == []


def test_more_and_more_of_one_part(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(name) for name in names(5)])
    left = names(5)
    for name in ("e1", "e3", "e0", "e4", "e2"):
        store.erase([name])
        store.gc(AT_ONCE, erase=True)
        left.remove(name)
        again = open_store(tmp_path / "s")
        assert ids_of(again.version()) == left
        for one in left:
            assert_same_episode(again.version().episode(one), episode(one))
        assert again.doctor().damage == []
    store.gc(AT_ONCE, erase=True)
    assert store.gc(AT_ONCE, erase=True).deleted == (), "there is nothing left to do"


def test_rows_that_a_lost_race_left_in_a_block_go_too(tmp_path: Path) -> None:
    root = tmp_path / "s"
    store = open_store(root, create=True)
    batch = write_new(store.catalog, "main", rows_of([secret(), episode("mine")]))
    open_store(root).append([secret()])
    commit_batch(store.catalog, batch, branch="main", message="late", run_id=layout.new_id())
    assert ids_of(store.version()) == [SECRET, "mine"]
    store.erase([SECRET])
    store.gc(AT_ONCE, erase=True)
    store.gc(AT_ONCE, erase=True)
    assert found_in(root, secret()) == {}
    assert_same_episode(open_store(root).version().episode("mine"), episode("mine"))


def test_files_of_versions_that_have_expired_are_no_hindrance(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    for one in (episode("a"), secret(), episode("b")):
        store.append([one])
    store.compact(everything=True)
    store.expire(before=store.version().number)
    for _ in range(2):
        store.gc(AT_ONCE)
    store.erase([SECRET])
    store.gc(AT_ONCE, erase=True)
    assert found_in(tmp_path / "s", secret()) == {}
    assert ids_of(store.version()) == ["a", "b"]
    assert store.doctor().damage == []


def test_unknown_ids_are_refused_and_nothing_is_erased(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a")])
    with pytest.raises(NotFoundError, match="'b'; nothing was erased"):
        store.erase(["a", "b"])
    assert ids_of(store.version()) == ["a"]
    store.erase(["a"])
    assert store.gc(AT_ONCE, dry_run=True, erase=True).deleted == ()


class Deaf(LocalObjects):
    """Does something once, just before a key that starts so is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before: tuple[str, Store] | None = None

    def read(self, key: str) -> bytes:
        if self.before is not None and key.startswith(self.before[0]):
            store, self.before = self.before[1], None
            store.erase([SECRET])
            store.gc(AT_ONCE, erase=True)
        return super().read(key)


@pytest.mark.parametrize("folder", ["episodes/", "shards/", "tails/"])
def test_who_reads_while_a_scrub_goes_on_reads_on(tmp_path: Path, folder: str) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a", 5000 if folder == "shards/" else 5), secret(), episode("b")])
    reader = Store(Catalog(objects := Deaf(tmp_path / "s"), create=False))
    if folder != "episodes/":
        reader.version().episodes()
        version = reader.version()
        block = version.state.parts[0].blocks[0]
        version.store.block_layout(block)  # the list of a shard's files is known already
        objects.before = (f"{folder}", store)
    else:
        objects.before = (folder, store)
    found = [one for one in reader.version().iter_episodes() if one.episode_id != SECRET]
    assert objects.before is None
    assert [one.episode_id for one in found] == ["a", "b"]
    assert_same_episode(found[1], episode("b"))
