"""No crash, at any moment of any protocol, loses or halves what was acknowledged."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest

from pipeline.store import commit as protocol
from tests.reliability.crashes import Model, Tree
from tests.reliability.exploring import Explored, explore, record
from tests.reliability.figures import tell
from tests.reliability.kernel import Call
from tests.reliability.protocols import PROTOCOLS, RACES, OverError, creating, racing
from tests.reliability.sizes import LONG, size

AGAIN = {"collect": 20, "erase": 20, "erase from a shard": 100}
"""Checks that read the whole disk: hardly two states are alike to them, so they see fewer."""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_crash_at_any_moment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CHECKPOINT_EVERY", 3 if name == "checkpoint" else 50)
    begun = time.perf_counter()
    every = AGAIN.get(name, 1) * size(3, 1)
    explored = explore(record(tmp_path, PROTOCOLS[name]), size(4, 512), again_every=every)
    _judge(name, explored, begun)


@pytest.mark.parametrize("name", RACES)
def test_a_crash_at_any_moment_of_a_race(name: str, tmp_path: Path) -> None:
    begun = time.perf_counter()
    total = Explored()
    for at in itertools.count(0 if LONG else 1, size(5, 1)):
        try:
            recording = record(_folder(tmp_path, at), racing(*RACES[name], at))
        except OverError:
            break
        total.add(explore(recording, size(2, 96), seed=at), f"at {at}")
    assert total.states
    _judge(name, total, begun)


def test_a_crash_while_two_create_a_store(tmp_path: Path) -> None:
    begun = time.perf_counter()
    total = Explored()
    for at in itertools.count(0, size(3, 1)):
        try:
            recording = record(_folder(tmp_path, at), creating(at))
        except OverError:
            break
        total.add(explore(recording, size(3, 64), seed=at), f"at {at}")
    _judge("create", total, begun)


def _judge(name: str, explored: Explored, begun: float) -> None:
    assert not explored.violations, "\n".join(explored.violations[:5])
    seconds = time.perf_counter() - begun
    tell(f"crash states: {name}", states=explored.states, checks=explored.runs, seconds=seconds)


def _folder(root: Path, at: int) -> Path:
    folder = root / str(at)
    folder.mkdir()
    return folder


# -- the model itself --------------------------------------------------------------------------


def states(*calls: Call, limit: int = 1000) -> set[frozenset[tuple[str, bytes]]]:
    model = Model()
    for call in calls:
        model.apply(call)
    return {_frozen(tree) for tree in model.states(limit, random.Random(0))}


def _frozen(tree: Tree) -> frozenset[tuple[str, bytes]]:
    return frozenset(tree.items())


def tree(**files: bytes) -> frozenset[tuple[str, bytes]]:
    return frozenset(files.items())


MAKE = (Call("create", "a"), Call("write", "a", data=b"1234"))


def test_a_file_that_is_not_synced_may_be_anything() -> None:
    contents = {tree(a=data) for data in (b"", b"12", bytes(4), b"1234")}
    assert states(*MAKE) == {tree()} | contents
    assert states(*MAKE, Call("sync_dir", "")) == contents


def test_a_synced_file_may_still_have_no_name() -> None:
    assert states(*MAKE, Call("fsync", "a")) == {tree(), tree(a=b"1234")}
    synced = (*MAKE, Call("fsync", "a"), Call("sync_dir", ""))
    assert states(*synced) == {tree(a=b"1234")}


def test_a_name_is_synced_with_its_folder_only() -> None:
    made = (*MAKE, Call("fsync", "a"), Call("mkdir", "d"), Call("link", "a", "d/b"))
    without, empty = tree(a=b"1234"), frozenset({("a", b"1234"), ("d/", b"")})
    whole = empty | {("d/b", b"1234")}
    assert states(*made, Call("sync_dir", "")) == {empty, whole}
    # The folder's own name is lost with all that is in it.
    lost = {tree(), without, frozenset({("d/", b"")}), frozenset({("d/", b""), ("d/b", b"1234")})}
    assert states(*made) == {*lost, empty, whole}
    assert states(*made, Call("sync_dir", "d")) == {
        tree(), without, frozenset({("d/", b""), ("d/b", b"1234")}), whole
    }  # fmt: skip


def test_changes_of_one_folder_are_lost_in_any_order() -> None:
    made = (*MAKE, Call("fsync", "a"), Call("sync_dir", ""))
    one, two = Call("link", "a", "b"), Call("unlink", "a")
    data = b"1234"
    assert states(*made, one, two) == {tree(a=data), tree(a=data, b=data), tree(b=data), tree()}


def test_a_rename_is_one_change() -> None:
    made = (*MAKE, Call("fsync", "a"), Call("sync_dir", ""), Call("rename", "a", "b"))
    assert states(*made) == {tree(a=b"1234"), tree(b=b"1234")}


def test_what_is_too_much_is_sampled() -> None:
    many = [Call("create", f"f{number}") for number in range(20)]
    found = states(*many, limit=100)
    assert 80 <= len(found) <= 100
    assert {tree(), tree(**{f"f{number}": b"" for number in range(20)})} <= found
