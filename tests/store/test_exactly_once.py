"""Each episode once: known, changed, refused, dropped, erased ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.append import Batch, Refusal, commit_batch
from pipeline.store.store import open_store
from schemas.errors import SpecMismatchError, UsageError
from schemas.identity import hash64
from schemas.version import SourceState
from tests.store.makers import episode, hashes, ids_of, names, quarantined


def test_the_same_ids_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    first = store.append([episode(name) for name in names(5)])
    before = hashes(tmp_path / "s")
    again = open_store(tmp_path / "s").append([episode(name) for name in names(5)])
    assert again.id == first.id
    assert hashes(tmp_path / "s") == before, "a second offer writes nothing at all"
    more = store.append([episode(name) for name in names(7)])
    assert ids_of(more) == names(7)
    assert more.state.parts[-1].episodes == 2
    assert sum(block.rows for block in more.state.parts[-1].blocks) == 10


def test_the_same_id_twice_in_one_batch(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    outcome = store.append_batch([episode("a"), episode("b"), episode("a"), episode("a", seed=1)])
    assert [row.episode_id for row in outcome.added] == ["a", "b"]
    assert outcome.known == 1
    assert quarantined(store) == [("a", "id_conflict")]


def test_other_content_is_refused_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a"), episode("b")])
    changed = store.append([episode("a", seed=1), episode("c")])
    assert ids_of(changed) == ["a", "b", "c"]
    np.testing.assert_array_equal(changed.episode("a").rewards, episode("a").rewards)
    assert quarantined(store) == [("a", "id_conflict")]
    message = store.quarantine()["message"][0].as_py()
    assert "'a'" in message
    assert "came other content" in message

    before = hashes(tmp_path / "s")
    again = open_store(tmp_path / "s")
    assert again.append([episode("a", seed=1), episode("c")]).id == changed.id
    assert hashes(tmp_path / "s") == before
    again.append([episode("a", seed=2)])
    again.append([episode("b", seed=1)])
    assert quarantined(again) == [("a", "id_conflict")] * 2 + [("b", "id_conflict")]


def test_equal_content_under_two_known_ids_is_refused_for_each(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a"), episode("b")])
    other = episode("z")
    store.append([other.replace(episode_id="a")])
    store.append([other.replace(episode_id="b")])
    assert quarantined(store) == [("a", "id_conflict"), ("b", "id_conflict")]


def test_only_a_refusal_still_commits(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    first = store.append([episode("a")])
    second = store.append([episode("a", seed=1)])
    assert second.number == first.number + 1
    assert store.quarantine("main:1").num_rows == 0
    refusal = Refusal("s", "s#1", None, None, "nan", "Expected numbers, came NaN.")
    batch = Batch(refusals=[refusal, refusal])
    outcome = commit_batch(store.catalog, batch, branch="main", message="", run_id="r1")
    assert outcome.commit is not None
    assert quarantined(store)[-1] == (None, "nan")
    assert len(quarantined(store)) == 2
    assert commit_batch(store.catalog, batch, branch="main", message="", run_id="r2").commit is None


def test_dropped_ids_stay_known_on_that_branch_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    version = store.append(
        [episode(name, length) for name, length in zip("abcd", (2, 3, 4, 5), strict=True)]
    )
    version.where("length > 3").commit(branch="long")
    outcome = store.append_batch([episode("a", 2), episode("e", 6)], branch="long")
    assert [row.episode_id for row in outcome.added] == ["e"]
    assert ids_of(store.version("long")) == ["c", "d", "e"]
    # Other content under a dropped id is a conflict, not a new episode.
    store.append([episode("a", 2, seed=1)], branch="long")
    assert quarantined(store, "long") == [("a", "id_conflict")]
    # A branch that never saw it takes it.
    assert ids_of(store.append([episode("a", 2)], branch="fresh")) == ["a"]


def test_a_branch_forgets_nothing_by_jumping(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    main = store.append([episode("a"), episode("b")])
    main.where("episode_id == 'a'").commit(branch="c")
    own = store.append([episode("x")], branch="c")
    main.where("episode_id == 'b'").commit(branch="c")
    assert ids_of(store.version("c")) == ["b"]
    store.append([episode("x"), episode("a")], branch="c")
    assert ids_of(store.version("c")) == ["b"]
    back = store.revert(f"c:{own.number}")
    assert ids_of(back) == ["a", "x"]
    store.append([episode("x"), episode("b")], branch="c")
    assert ids_of(store.version("c")) == ["a", "x"]
    assert len(store.version("c").state.known) <= 3


def test_erased_ids_do_not_come_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a"), episode("b")])
    document = {"id_hashes": [f"{hash64('a'):016x}"]}
    path = tmp_path / "s" / layout.erasure(1)
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    assert ids_of(store.append([episode("a"), episode("c")])) == ["b", "c"]


def test_unlike_specs_are_refused_and_nothing_is_committed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a")])
    with pytest.raises(SpecMismatchError, match="float64"):
        store.append([episode("b", observations={"state": np.zeros((5, 3))})])
    assert ids_of(open_store(tmp_path / "s").version()) == ["a"]
    # Without actions or rewards it fits; the spec stays whole.
    store.append([episode("c", actions=None, rewards=None)])
    assert set(store.version().specs["default"].fields) == {
        "observations/state",
        "actions",
        "rewards",
    }
    reversed_ = store.append([episode("c", actions=None, rewards=None)], branch="r")
    grown = store.append([episode("a")], branch="r")
    assert set(reversed_.specs["default"].fields) == {"observations/state"}
    assert grown.specs == store.version().specs


def test_source_states_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    source = SourceState(
        format="f",
        where="w",
        identity=None,
        fingerprint="1",
        metadata={"none": None, "nan": float("nan"), "pair": (1, 2), "deep": {"x": [None]}},
    )
    batch = Batch(sources={"w": source})
    for run in range(3):
        catalog = open_store(tmp_path / "s").catalog
        commit_batch(catalog, batch, branch="main", message="", run_id=f"r{run}")
    assert store.version().number == 1
    changed = Batch(sources={"w": source.model_copy(update={"fingerprint": "2"})})
    commit_batch(store.catalog, changed, branch="main", message="", run_id="r9")
    assert store.version().number == 2
    assert store.version().state.sources["w"].fingerprint == "2"


def test_the_first_append_needs_an_episode(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    with pytest.raises(UsageError, match="at least one episode"):
        store.append([])


def test_source_is_stamped_and_no_part_of_identity(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("a")], source="one")
    again = store.append([episode("a")], source="two")
    assert again.number == 1
    assert again.episodes()["source"].to_pylist() == ["one"]
