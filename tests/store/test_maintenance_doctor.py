"""The doctor names each damage; repair keeps all that is whole and lets work go on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import DamagedStoreError, PenstockError
from schemas.identity import digest
from tests.store.makers import episode, ids_of, names, read_everything, score
from tests.strategies import assert_same_episode

HELD = ("shard-a", "shard-b", *names(6))
"""All ids of a grown store, in order: a shard of two, then a tail each."""


def wide(name: str) -> Episode:
    return episode(name, 2500)


def made(name: str) -> Episode:
    return wide(name) if name.startswith("shard") else episode(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return grown(tmp_path)


def grown(folder: Path) -> Path:
    """Commits 1 to 8: a shard, six tails, scores."""
    store = open_store(folder / "s", create=True)
    store.append([wide("shard-a"), wide("shard-b")])
    for name in names(6):
        store.append([episode(name)])
    score(store, {"e0": 0.5, "e1": 1.5})
    return folder / "s"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def file_of(root: Path, number: int, what: str) -> Path:
    """A file of the part that a commit appended."""
    commit = open_store(root).version(f"main:{number}").commit
    operation = commit.operations[0]
    part = operation.parts[0]  # type: ignore[union-attr]
    keys = {
        "commit": layout.commit("main", number),
        "rows": part.rows.key,
        "block": part.blocks[0].file.key,
        "ids": operation.known[0].key,  # type: ignore[union-attr]
    }
    return root / keys[what]


def chunk_of(root: Path) -> Path:
    return next(path for path in root.glob("shards/*/actions/c*") if path.is_file())


@dataclass(frozen=True)
class Damage:
    """What is done to a store, what the doctor must say, and what is lost with it."""

    do: Callable[[Path], Path]
    """Returns the file that the doctor must name."""
    code: str
    lost: tuple[str, ...] = ()


def unlinked(path: Path) -> Path:
    path.unlink()
    return path


def flipped(path: Path) -> Path:
    flip(path)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def shard_gone(root: Path) -> Path:
    folder = next((root / "shards").iterdir())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return folder / "files.json"


BOTH, E1, E2 = ("shard-a", "shard-b"), ("e1",), ("e2",)
FIRST_SCORES, MODELS = "overlays/*.parquet", "overlays/*.npz"
DAMAGE = {
    "a shard gone": Damage(shard_gone, "missing_file", BOTH),
    "a chunk of a shard gone": Damage(lambda r: unlinked(chunk_of(r)), "missing_file", BOTH),
    "a bit flipped in a shard": Damage(lambda r: flipped(chunk_of(r)), "bad_file", BOTH),
    "a list of files cut": Damage(lambda r: cut(file_of(r, 1, "block")), "bad_file", BOTH),
    "a bit flipped in a tail": Damage(lambda r: flipped(file_of(r, 3, "block")), "bad_file", E1),
    "a tail gone": Damage(lambda r: unlinked(file_of(r, 3, "block")), "missing_file", ("e1",)),
    "a bit flipped in a part": Damage(lambda r: flipped(file_of(r, 4, "rows")), "bad_file", E2),
    "a part gone": Damage(lambda r: unlinked(file_of(r, 4, "rows")), "missing_file", ("e2",)),
    "an id index gone": Damage(lambda r: unlinked(file_of(r, 5, "ids")), "missing_file"),
    "a bit flipped in an id index": Damage(lambda r: flipped(file_of(r, 5, "ids")), "bad_file"),
    "scores gone": Damage(lambda r: unlinked(next(r.glob(FIRST_SCORES))), "missing_file"),
    "a reference model gone": Damage(lambda r: unlinked(next(r.glob(MODELS))), "missing_file"),
    "the last commit cut": Damage(lambda r: cut(r / layout.commit("main", 8)), "bad_commit"),
    "a commit cut": Damage(lambda r: cut(file_of(r, 6, "commit")), "bad_commit", ("e4",)),
    "the first commit cut": Damage(lambda r: cut(file_of(r, 1, "commit")), "bad_commit", BOTH),
    "a commit missing": Damage(lambda r: unlinked(file_of(r, 3, "commit")), "gap", ("e1",)),
    "the first commit missing": Damage(lambda r: unlinked(file_of(r, 1, "commit")), "gap", BOTH),
    "a commit empty": Damage(lambda r: emptied(file_of(r, 2, "commit")), "bad_commit", ("e0",)),
}  # fmt: skip


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_a_whole_store_is_whole(root: Path) -> None:
    found = open_store(root).doctor()
    assert found.problems == []
    assert found.files > 15
    assert found.bytes > 1000
    assert open_store(root).repair() == []
    assert open_store(root).version().number == 8


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_named_and_repaired(root: Path, name: str) -> None:
    judge_damage(root, name)


def judge_damage(root: Path, name: str) -> None:
    """Does damage; it is named, and all else is kept."""
    damage = DAMAGE[name]
    store = open_store(root)
    read_everything(store)  # whoever has read it all before is not deceived by his memory
    where = damage.do(root).relative_to(root).as_posix()
    for doctor in (store, open_store(root)):
        found = doctor.doctor()
        assert [(p.code, p.where) for p in found.damage] == [(damage.code, where)], found.damage
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    repaired = open_store(root).repair()
    assert [done.branch for done in repaired] == ["main"]
    assert repaired[0].left_out
    assert {path: path.read_bytes() for path in before} == before, "a repair deletes nothing"
    kept = [held for held in HELD if held not in damage.lost]
    again = open_store(root)
    assert again.version().id == repaired[0].commit.id
    assert ids_of(again.version()) == kept, "nothing readable is lost"
    for one in again.version().iter_episodes():
        assert digest(one) == digest(made(one.episode_id))
    assert again.doctor().damage == []
    assert open_store(root).repair() == []


@pytest.mark.parametrize("name", DAMAGE)
def test_work_goes_on_after_a_repair(root: Path, name: str) -> None:
    judge_work_after(root, name)


def judge_work_after(root: Path, name: str) -> None:
    """Does damage and repairs it; what was lost comes back once, and maintenance goes on."""
    damage = DAMAGE[name]
    damage.do(root)
    open_store(root).repair()
    store = open_store(root)
    store.append([made(held) for held in HELD])
    store.append([episode("new")])
    found = ids_of(open_store(root).version())
    assert len(found) == len(set(found)), "each id exactly once"
    assert set(found) == {*HELD, "new"}, "what was lost can be brought back"
    again = open_store(root)
    for one in again.version().iter_episodes():
        assert_same_episode(one, made(one.episode_id))
    again.tag("t")
    again.compact(everything=True)
    again.expire(before=again.version().number)
    again.gc(dt.timedelta(0))
    again.gc(dt.timedelta(0))
    assert sorted(ids_of(open_store(root).version())) == sorted(found)
    assert open_store(root).doctor().damage == []
    assert len(open_store(root).log()) >= 4


def test_damage_within_a_block_takes_its_own_episodes_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    given = [episode("a"), episode("b", rewards=None), episode("c"), episode("d", rewards=None)]
    part = store.append(given).state.parts[0]
    assert len(part.blocks) == 2
    flip(tmp_path / "s" / part.blocks[0].file.key)
    store.repair()
    assert ids_of(open_store(tmp_path / "s").version()) == ["b", "d"]
    assert len(store.version().index().episode_ids) == 2


def test_many_damages_at_once(root: Path) -> None:
    for name in ("a chunk of a shard gone", "a bit flipped in a tail", "a commit cut"):
        DAMAGE[name].do(root)
    found = open_store(root).doctor()
    assert sorted(p.code for p in found.damage) == ["bad_commit", "bad_file", "missing_file"]
    open_store(root).repair()
    assert ids_of(open_store(root).version()) == ["e0", "e2", "e3", "e5"]
    assert open_store(root).doctor().damage == []


@pytest.mark.parametrize("name", ["a commit missing", "the first commit missing", "a commit cut"])
def test_nothing_goes_from_a_store_whose_commits_are_damaged(root: Path, name: str) -> None:
    judge_that_nothing_goes(root, name)


def judge_that_nothing_goes(root: Path, name: str) -> None:
    """Does damage; a collection refuses."""
    DAMAGE[name].do(root)
    before = {path for path in root.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(DamagedStoreError):
            open_store(root).gc(dt.timedelta(0))
    assert {path for path in root.rglob("*") if path.is_file()} == before


def test_several_commits_missing_in_a_row(root: Path) -> None:
    for number in (3, 4, 5):
        (root / layout.commit("main", number)).unlink()
    found = open_store(root).doctor()
    assert [p.code for p in found.damage] == ["gap"] * 3
    open_store(root).repair()
    store = open_store(root)
    assert ids_of(store.version()) == ["shard-a", "shard-b", "e0", "e4", "e5"]
    assert store.append([episode(name) for name in names(6)]).number > 9
    assert sorted(ids_of(open_store(root).version())) == sorted(HELD)
    assert open_store(root).doctor().damage == []


def test_a_commit_from_before_a_compaction_is_lost(root: Path) -> None:
    store = open_store(root)
    store.compact(everything=True)
    store.append([episode("later")])
    cut(root / layout.commit("main", 3))
    assert [p.code for p in open_store(root).doctor().damage] == ["bad_commit"]
    open_store(root).repair()
    assert sorted(ids_of(open_store(root).version())) == sorted([*HELD, "later"])
    for number in (2, 3, 4, 5, 6, 7):
        cut(root / layout.commit("main", number))
    open_store(root).doctor()


def test_a_compaction_of_parts_nobody_names_any_more(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    for name in ("a", "b"):
        store.append([episode(name)])
    store.compact(everything=True)
    for number in (1, 2):
        cut(tmp_path / "s" / layout.commit("main", number))
    assert len(open_store(tmp_path / "s").doctor().damage) == 2
    open_store(tmp_path / "s").repair()
    assert ids_of(open_store(tmp_path / "s").version()) == ["a", "b"]


def test_a_branch_without_any_readable_commit(root: Path) -> None:
    open_store(root).branch("side")
    cut(root / layout.commit("side", 1))
    flip(file_of(root, 3, "block"))
    with pytest.raises(PenstockError, match="restore the branch"):
        open_store(root).repair()


def test_other_branches_are_left_alone(root: Path) -> None:
    store = open_store(root)
    store.branch("side", "main:2")
    store.append([episode("x")], branch="side")
    block = store.version("side").state.parts[-1].blocks[0].file.key
    flip(root / block)
    assert [done.branch for done in open_store(root).repair()] == ["side"]
    again = open_store(root)
    assert again.version().number == 8
    assert ids_of(again.version("side")) == ["shard-a", "shard-b", "e0"]


def test_a_tag_of_what_is_damaged_is_named(root: Path) -> None:
    store = open_store(root)
    store.tag("gold", "main:3")
    (root / layout.tag("bad")).write_text("{")
    assert [(p.code, p.where) for p in open_store(root).doctor().damage] == [
        ("bad_tag", layout.tag("bad"))
    ]


def test_a_commit_that_is_another_is_named(root: Path) -> None:
    """Numbers that were filled anew by somebody who did not see a gap."""
    other = open_store(root.parent / "other", create=True)
    for name in ("x", "y", "z"):
        other.append([episode(name)])
    key = layout.commit("main", 3)
    (root / key).write_bytes((root.parent / "other" / key).read_bytes())
    assert layout.commit("main", 4) in {p.where for p in open_store(root).doctor().damage}


def test_orphans_are_listed_and_no_damage(root: Path) -> None:
    orphan = root / "tails" / f"{layout.new_id()}.arrow"
    orphan.write_bytes(b"1234")
    found = open_store(root).doctor()
    assert [(p.code, p.is_damage) for p in found.problems] == [("orphan", False)]
    assert "4 bytes" in found.problems[0].message
    assert open_store(root).repair() == []


def test_expired_versions_are_no_damage(root: Path) -> None:
    store = open_store(root)
    store.compact(everything=True)
    store.expire(before=store.version().number)
    for _ in range(2):
        store.gc(dt.timedelta(0))
    assert open_store(root).doctor().problems == []


def test_rows_that_contradict_their_block_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    version = store.append([episode("a"), episode("b")])
    block = version.state.parts[0].blocks[0]
    key = layout.commit("main", 1)
    text = (tmp_path / "s" / key).read_text()
    (tmp_path / "s" / key).write_text(text.replace(f'"rows":{block.rows}', '"rows":7'))
    found: Store = open_store(tmp_path / "s")
    assert [p.code for p in found.doctor().damage] == ["bad_counts"]
    assert np.int64(block.rows) == 10
