"""Versions that share all data: selections, overlays in score sets, erasures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.choose import choose
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import NotFoundError, TransientError, UnknownNameError, UnscoredError
from schemas.identity import hash64
from tests.store.disks import Interrupted, quick_store, store_on
from tests.store.makers import episode, hashes, ids_of, names, score
from tests.strategies import assert_same_episode


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten episodes of 0 to 9 steps in three parts."""
    made = quick_store(tmp_path / "s")
    for first, last in ((0, 4), (4, 5), (5, 10)):
        made.append([episode(f"e{n}", n, task=f"t{n % 2}") for n in range(first, last)])
    return made


# -- selections --------------------------------------------------------------------------------


def test_a_curated_version_shares_all_data(store: Store) -> None:
    root = Path(store.url)
    before = hashes(root)
    base = store.version()
    selection = base.where("length >= 3 and task == 't1'")
    assert len(selection) == 4
    assert hashes(root) == before, "a selection is no version yet"
    curated = selection.commit(branch="odd", message="odd ones")
    after = hashes(root)
    assert before.items() <= after.items()
    new = {key for key in after if key not in before}
    kinds = {key.split("/")[0] for key in new if not key.endswith(".ids")}
    assert kinds == {"selections", "refs"}
    assert ids_of(curated) == ["e3", "e5", "e7", "e9"]
    assert (curated.branch, curated.number, curated.message) == ("odd", 1, "odd ones")
    assert curated.parent == base.commit.ref
    assert (curated.commit.totals.episodes, curated.commit.totals.steps) == (4, 24)
    for one in open_store(store.url).version("odd").iter_episodes():
        assert_same_episode(one, base.episode(one.episode_id))
    with pytest.raises(NotFoundError, match="'e4'"):
        curated.episode("e4")
    derivation = curated.state.derivation
    assert derivation is not None
    assert derivation.base == base.commit.ref
    assert derivation.where == "length >= 3 and task == 't1'"
    assert (derivation.episodes_before, derivation.episodes_after) == (10, 4)


def test_selections_of_selections_and_of_nothing(store: Store) -> None:
    first = store.version().where("length > 2").commit(branch="a")
    second = first.where("length < 6").commit(branch="b")
    assert ids_of(second) == ["e3", "e4", "e5"]
    assert [part.selection is None for part in second.state.parts] == [False, True, False]
    everything = second.where("length > 0").commit(branch="c")
    assert ids_of(everything) == ["e3", "e4", "e5"]
    nothing = second.where("length > 99").commit(branch="d")
    assert len(nothing) == 0
    assert ids_of(nothing) == []
    assert list(nothing.iter_episodes()) == []
    assert nothing.index().data_ids == ()
    assert ids_of(store.append([episode("new")], branch="d")) == ["new"]


def test_a_curated_branch_goes_on(store: Store) -> None:
    store.version().where("length > 7").commit(branch="long")
    store.append([episode("x", 20)], branch="long")
    store.version("main").where("length > 8").commit(branch="long", message="refreshed")
    assert ids_of(store.version("long")) == ["e9"]
    assert ids_of(store.version("long:2")) == ["e8", "e9", "x"]
    assert [version.branch for version in store.log("long")] == ["long"] * 3 + ["main"] * 3


def test_the_index_matches_the_blocks(store: Store) -> None:
    curated = store.version().where("task == 't0'").commit(branch="even")
    index = curated.index()
    assert index.episode_ids.tolist() == ["e0", "e2", "e4", "e6", "e8"]
    assert index.length.tolist() == [0, 2, 4, 6, 8]
    for at, name in enumerate(index.episode_ids):
        block = index.data_ids[index.data[at]]
        rows = curated.read_rows(block)
        assert len(rows["valid"]) == curated.data_rows(block)
        cut = slice(index.row_start[at], index.row_start[at] + index.length[at] + 1)
        one = curated.episode(name)
        state = one.observations["observations/state"]
        np.testing.assert_array_equal(rows["observations/state"][cut], state)
        valid = np.arange(one.length + 1) < one.length
        np.testing.assert_array_equal(rows["valid"][cut], valid)
        assert index.terminated[at] == one.is_terminated
        assert index.final_present[at] == (one.final_observation == "present")


def test_curating_main_keeps_what_came_meanwhile(store: Store, tmp_path: Path) -> None:
    mine = store_on(
        Interrupted(tmp_path / "s", "branches/main", lambda: store.append([episode("late", 30)]))
    )
    selection = mine.version().where("length > 7")
    selection.commit(branch="main")
    assert ids_of(open_store(store.url).version()) == ["e8", "e9", "late"]
    # What is chosen from an older version on purpose is that version's.
    mine.version("main:3").where("length > 7").commit(branch="main")
    assert ids_of(open_store(store.url).version()) == ["e8", "e9"]


def test_curating_main_while_it_jumps_is_tried_again(store: Store, tmp_path: Path) -> None:
    mine = store_on(Interrupted(tmp_path / "s", "branches/main", lambda: store.revert("main:1")))
    with pytest.raises(TransientError, match="meanwhile"):
        mine.version().where("length > 2").commit(branch="main")
    assert ids_of(open_store(store.url).version()) == names(4)


def test_half_of_many_episodes_is_a_small_quick_commit(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    count = 3000
    shared = np.zeros((2, 1), np.float32)
    store.append(Episode(f"e{n}", shared, columns={"n": n}) for n in range(count))
    before = hashes(tmp_path / "s")
    curated = store.version().where("n < 1500").commit(branch="half")
    after = hashes(tmp_path / "s")
    written = sum((tmp_path / "s" / key).stat().st_size for key in after if key not in before)
    assert before.items() <= after.items()
    assert written < 100_000
    assert len(curated) == 1500


# -- overlays ----------------------------------------------------------------------------------


def column(store: Store, name: str, ref: str = "main") -> dict[str, object]:
    table = store.version(ref).episodes()
    return dict(zip(table["episode_id"].to_pylist(), table[name].to_pylist(), strict=True))


def test_scores_are_joined_by_id(store: Store) -> None:
    before = hashes(Path(store.url))
    score(store, {"e3": 0.3, "e1": 0.1, "gone": 9.0})
    assert before.items() <= hashes(Path(store.url)).items()
    scores = column(store, "action_divergence")
    assert scores == {name: {"e1": 0.1, "e3": 0.3}.get(name) for name in names(10)}
    assert "action_divergence" not in store.version("main:3").episodes().column_names
    # A later run of the same set adds and replaces; a curated branch sees what it was given.
    curated = store.version().where("length < 4").commit(branch="c")
    score(store, {"e3": 0.9, "e5": 0.5})
    scores = column(store, "action_divergence")
    assert (scores["e1"], scores["e3"], scores["e5"]) == (0.1, 0.9, 0.5)
    assert column(store, "action_divergence", "c")["e3"] == 0.3
    assert curated.episodes(where="action_divergence is not null").num_rows == 2


def test_score_sets_never_mix(store: Store) -> None:
    score(store, dict.fromkeys(names(10), 0.1), score_set="old")
    score(store, {"e0": 0.9}, score_set="new")
    scores = column(store, "action_divergence")
    assert scores == {"e0": 0.9} | dict.fromkeys(names(10)[1:])
    score(store, {"e1": 0.7}, score_set="new")
    assert column(store, "action_divergence")["e1"] == 0.7
    score(store, {"e0": 0.2}, score_set="old")
    assert column(store, "action_divergence") == {"e0": 0.2} | dict.fromkeys(names(10)[1:], 0.1)
    score(store, {"e0": 5.0}, score_set="new", metric="smoothness")
    assert column(store, "action_divergence")["e5"] == 0.1


def test_overlays_leave_facts_and_other_episodes_alone(store: Store) -> None:
    score(
        store,
        {"e1": 0.5},
        extra={"length": [77.0], "_row": [5], "episode_return": [1.25], "final_observation": ["x"]},
    )
    version = store.version()
    assert version.episodes()["length"].to_pylist() == list(range(10))
    returns = column(store, "episode_return")
    assert returns["e1"] == 1.25
    assert returns["e2"] == store.version("main:3").episode("e2").episode_return
    assert_same_episode(version.episode("e1"), store.version("main:3").episode("e1"))


# -- filters and scores ------------------------------------------------------------------------


def test_a_filter_over_a_metric_nobody_measured(store: Store) -> None:
    with pytest.raises(UnscoredError, match="penstock measure"):
        store.version().where("action_divergence < 1")
    with pytest.raises(UnknownNameError, match="length"):
        store.version().where("lenght < 1")


def test_a_filter_that_hangs_on_missing_scores(store: Store) -> None:
    nan = float("nan")
    score(store, {"e1": 0.1, "e2": 0.9, "e3": nan})
    version = store.version()
    with pytest.raises(UnscoredError, match="came 8 without"):
        version.where("action_divergence < 0.5")
    with pytest.raises(UnscoredError):
        version.episodes(where="action_divergence < 0.5")
    kept = version.where("action_divergence < 0.5", unscored="keep")
    assert kept.episodes()["episode_id"].to_pylist() == ["e0", "e1", *names(10)[3:]]
    dropped = version.where("action_divergence < 0.5", unscored="drop")
    assert dropped.episodes()["episode_id"].to_pylist() == ["e1"]
    assert dropped.derivation.unscored == "drop"
    # Where something else decides, no score is needed; `is null` asks for it by name.
    assert len(version.where("action_divergence < 0.5 and length < 3 and length > 0")) == 1
    assert len(version.where("action_divergence < 0.5 or length >= 0")) == 10
    assert len(version.where("action_divergence is null")) == 8
    assert len(version.where("action_divergence is null or action_divergence < 0.5")) == 9


def test_a_choice_says_what_it_used(store: Store) -> None:
    score(store, {name: float(n) for n, name in enumerate(names(10))})
    selection = store.version().where("action_divergence <= quantile(action_divergence, 0.5)")
    assert len(selection) == 5
    assert selection.derivation.score_sets == {"action_divergence": "s1"}
    assert "4.5" in str(selection.derivation.resolved)
    curated = selection.commit(branch="half")
    again = choose(store.version().episodes(), str(selection.derivation.resolved))
    assert int(again.mask.sum()) == len(curated)


# -- erasures ----------------------------------------------------------------------------------


def erase(store: Store, number: int, *episode_ids: str) -> None:
    path = Path(store.url) / layout.erasure(number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"id_hashes": [f"{hash64(name):016x}" for name in episode_ids]}))


def test_erased_episodes_are_in_no_version(store: Store) -> None:
    store.version().where("length > 2").commit(branch="c")
    store.tag("t", "main:1")
    open_before = open_store(store.url)
    old = open_before.version()
    assert len(old) == 10
    erase(store, 1, "e3", "e7")
    assert len(old) == 8, "a version that is open already subtracts them too"
    for read in (open_store(store.url), open_before):
        erase(store, 2, "e8")
        version = read.version()
        left = [name for name in names(10) if name not in ("e3", "e7", "e8")]
        assert ids_of(version) == left
        assert [one.episode_id for one in version.iter_episodes()] == left
        assert version.index().episode_ids.tolist() == left
        assert ids_of(read.version("t")) == ["e0", "e1", "e2"]
        assert ids_of(read.version("c")) == ["e4", "e5", "e6", "e9"]
        count = version.query("SELECT count(*) AS n FROM episodes WHERE episode_id = 'e7'")
        assert count["n"].to_pylist() == [0]
        assert len(version.where("length > 2")) == 4
        assert version.field("rewards").shape[0] == sum(int(name[1:]) for name in left)
        for name in ("e3", "e7"):
            with pytest.raises(NotFoundError):
                version.episode(name)
        curated = version.where("length > 4").commit(branch="later")
        assert ids_of(curated) == ["e5", "e6", "e9"]
