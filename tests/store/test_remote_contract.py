"""The store keeps its promises alike on disk and in S3."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import time
from typing import Any

import numpy as np
import pytest

from pipeline.store.objects import TEMPORARY
from pipeline.store.places import open_objects
from pipeline.store.store import Store, open_store, open_version, parse_ref
from schemas.errors import NameTakenError, NotFoundError
from schemas.identity import digest
from tests.episodes import episode
from tests.store.remote_fixtures import Bucket


def ids(store: Store, ref: str = "main") -> list[str]:
    found: list[str] = store.version(ref).episodes()["episode_id"].to_pylist()
    return found


# -- objects -------------------------------------------------------------------------------------


def test_an_object_is_what_was_put(place: str) -> None:
    objects = open_objects(place)
    objects.put({"tails/a b.arrow": b"one", "shards/x/observations/c.0": b"", "x%2Fy": b"two"})
    assert objects.read("tails/a b.arrow") == b"one"
    assert objects.read("shards/x/observations/c.0") == b""
    assert objects.read("x%2Fy") == b"two"
    assert objects.exists("x%2Fy")
    assert not objects.exists("x")
    assert not objects.exists("shards/x")


def test_what_is_not_there_is_said_to_be_missing(place: str) -> None:
    objects = open_objects(place)
    with pytest.raises(FileNotFoundError):
        objects.read("refs/branches/main/000000000001.json")
    objects.delete("refs/nothing")
    assert list(objects.names("refs")) == []
    assert list(objects.entries("refs")) == []


def test_only_the_first_creation_counts(place: str) -> None:
    objects = open_objects(place)
    assert objects.put_if_absent("refs/tags/a.json", b"first")
    assert not objects.put_if_absent("refs/tags/a.json", b"second")
    assert objects.read("refs/tags/a.json") == b"first"


def test_names_are_those_directly_below(place: str) -> None:
    objects = open_objects(place)
    objects.put(dict.fromkeys(("refs/a/1", "refs/a/2", "refs/b", "refsx/c", "d"), b""))
    assert sorted(objects.names("refs")) == ["a", "b"]
    assert sorted(objects.names("refs/a")) == ["1", "2"]


def test_entries_tell_sizes_and_ages_by_the_clock_of_the_place(place: str) -> None:
    objects = open_objects(place)
    objects.put_if_absent("penstock.json", b"{}")
    before = objects.now()
    objects.put({"tails/a": b"123", "tails/b/c": b""})
    found = {entry.key: entry for entry in objects.entries("tails")}
    assert {key: entry.bytes for key, entry in found.items()} == {"tails/a": 3, "tails/b/c": 0}
    for entry in found.values():
        assert abs(entry.modified - before) < dt.timedelta(seconds=30)
    everything = {entry.key for entry in objects.entries("")}
    assert {"penstock.json", *found} <= everything
    assert not any(TEMPORARY in key for key in everything)


def test_listings_go_on_over_all_their_pages(bucket: Bucket) -> None:
    objects = open_objects(bucket.url, {"s3_additional_kwargs": {"MaxKeys": 2}})
    objects.put({f"tails/{n}": b"x" for n in range(5)})
    assert sorted(objects.names("tails")) == list("01234")
    assert len(list(objects.entries("tails"))) == 5
    listings = [r for r in bucket.proxy.requests if "list-type=2" in r.path]
    assert len(listings) == 6


# -- stores --------------------------------------------------------------------------------------


def test_episodes_come_back_as_they_were(place: str) -> None:
    given = [episode(f"e{n}", length=20 + n) for n in range(3)]
    open_store(place, create=True).append(given)
    version = open_store(place).version()
    for one in given:
        back = version.episode(one.episode_id)
        assert digest(back) == digest(one)
        np.testing.assert_array_equal(back.actions, one.actions)


def test_shards_come_back_as_they_were(place: str) -> None:
    given = [episode(f"e{n}", length=999) for n in range(6)]
    store = open_store(place, create=True)
    version = store.append(given)
    (block,) = store.catalog.refs.state(version.commit).parts[0].blocks
    assert block.container == "shard"
    rewards = open_version(f"{place}@main").field("rewards").compute()
    np.testing.assert_array_equal(rewards, np.concatenate([one.rewards for one in given]))


def test_known_episodes_are_not_added_again(place: str) -> None:
    store = open_store(place, create=True)
    first = store.append([episode("a"), episode("b")])
    assert open_store(place).append([episode("b"), episode("a")]).id == first.id
    second = store.append([episode("b"), episode("c"), episode("a", seed=1)])
    assert ids(store) == ["a", "b", "c"]
    assert second.number == 2
    assert store.quarantine()["code"].to_pylist() == ["id_conflict"]


def test_a_curated_version_shares_its_data(place: str) -> None:
    store = open_store(place, create=True)
    store.append([episode("a", success=True), episode("b", success=False)])
    store.version().where("success").commit(branch="good", message="those that worked")
    assert ids(open_store(place), "good") == ["a"]
    store.tag("good-v1", "good")
    store.append([episode("c", success=True)], branch="good")
    assert ids(open_store(place), "good-v1") == ["a"]
    assert ids(open_store(place), "good") == ["a", "c"]
    assert store.tags()["good-v1"].branch == "good"
    with pytest.raises(NameTakenError):
        store.tag("good-v1", "main")
    store.delete_tag("good-v1")
    with pytest.raises(NotFoundError):
        store.version("good-v1")


def test_history_can_be_read_and_undone(place: str) -> None:
    store = open_store(place, create=True)
    first = store.append([episode("a")], message="one")
    store.append([episode("b")], message="two")
    store.revert("main:1")
    again = open_store(place)
    assert [version.message for version in again.log()][1:] == ["two", "one"]
    assert ids(again) == ["a"]
    assert ids(again, "main:2") == ["a", "b"]
    assert again.version(first.id[:8]).id == first.id
    store.branch("try", "main:2")
    assert sorted(again.branches()) == ["main", "try"]
    store.delete_branch("try")
    assert sorted(open_store(place).branches()) == ["main"]


def test_two_writers_that_know_nothing_of_each_other_both_win(place: str) -> None:
    one, two = open_store(place, create=True), open_store(place, create=True)
    assert one.id == two.id
    for n in range(4):  # each time the other's head is older than the branch
        one.append([episode(f"one-{n}"), episode(f"both-{n}")])
        two.append([episode(f"two-{n}"), episode(f"both-{n}")])
    wanted = [f"{who}-{n}" for who in ("both", "one", "two") for n in range(4)]
    assert sorted(ids(open_store(place))) == wanted
    assert len(open_store(place).log()) == 8


def test_a_long_history_opens_through_its_checkpoints(place: str) -> None:
    store = open_store(place, create=True)
    for n in range(52):
        store.append([episode(f"e{n}", length=2)])
    assert ids(open_store(place)) == [f"e{n}" for n in range(52)]
    assert open_store(place).append([episode("e7", length=2)]).number == 52


def test_a_store_is_maintained(place: str) -> None:
    store = open_store(place, create=True)
    for name in "abc":
        store.append([episode(name)])
    store.catalog.objects.put({"tails/orphan.arrow": b"of a writer that died"})
    assert store.gc(dry_run=True).marked == ()  # too young
    store.compact(everything=True)
    store.erase(["b"])
    store.gc(erase=True)
    now = dt.timedelta(0)
    assert "tails/orphan.arrow" in store.gc(now).marked
    assert "tails/orphan.arrow" in store.gc(now).deleted
    assert not store.catalog.objects.exists("tails/orphan.arrow")
    fresh = open_store(place)
    assert fresh.doctor().damage == []
    assert ids(fresh) == ["a", "c"]
    assert len(fresh.version().field("rewards").compute()) == 40


def test_a_store_travels_to_other_processes(place: str) -> None:
    store = open_store(place, create=True)
    store.append([episode("a")])
    there = pickle.loads(pickle.dumps(store.catalog))
    assert ids(Store(there)) == ["a"]


def test_a_forked_child_makes_a_connection_of_its_own(place: str) -> None:
    store = open_store(place, create=True)
    store.append([episode("a")])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.append([episode("b")])
            code = 0
        finally:
            os._exit(code)
    assert _code_of(child) == 0
    store.append([episode("c")])
    assert ids(open_store(place)) == ["a", "b", "c"]


def test_a_url_and_a_reference_are_told_apart(bucket: Bucket) -> None:
    store = open_store(bucket.url, create=True)
    store.append([episode("a")])
    store.tag("v1")
    root = f"s3://{bucket.name}"
    assert parse_ref(f"{bucket.url}@main:1") == (bucket.url, "main:1")
    assert parse_ref(f"{root}@v1") == (root, "v1")
    assert parse_ref(bucket.url) == (bucket.url, "main")
    assert open_version(f"{bucket.url}@v1").id == open_version(f"{bucket.url}/@main").id
    open_store(root, create=True).append([episode("b")])
    assert ids(open_store(root)) == ["b"]
    assert ids(open_store(bucket.url)) == ["a"]


def _code_of(child: int) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hung"
