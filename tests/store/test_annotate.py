"""Labels and arrays of steps: versioned, joined by id, undone by a revert."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.store.store import Store, open_store
from schemas.errors import NotFoundError, UsageError
from tests.store.disks import Interrupted, quick_store, store_on
from tests.store.makers import episode, hashes, ids_of, names, score
from tests.strategies import assert_same_episode


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six episodes of 3 to 8 steps in two parts."""
    made = quick_store(tmp_path / "s")
    made.append([episode(f"e{n}", n + 3, task=f"t{n % 2}") for n in range(4)])
    made.append([episode(f"e{n}", n + 3, task=f"t{n % 2}") for n in range(4, 6)])
    return made


def column(store: Store, name: str, ref: str = "main") -> list[object]:
    found: list[object] = store.version(ref).episodes()[name].to_pylist()
    return found


def labels(**columns: list[object]) -> pa.Table:
    return pa.table(columns)


# -- labels ------------------------------------------------------------------------------------


def test_labels_are_columns_of_a_new_version_alone(store: Store) -> None:
    before = hashes(Path(store.url))
    made = store.version().annotate(
        labels(episode_id=["e4", "e1"], grade=[3, 1], note=["ok", "bad"]), how="by hand"
    )
    assert before.items() <= hashes(Path(store.url)).items()
    assert (made.branch, made.number) == ("main", 3)
    assert column(store, "grade") == [None, 1, None, None, 3, None]
    assert column(store, "note") == [None, "bad", None, None, "ok", None]
    assert "grade" not in store.version("main:2").episodes().column_names
    assert made.episode("e4").labels == {"grade": 3, "note": "ok"}
    assert made.episode("e0").labels == {}
    assert ids_of(made.where("grade >= 2").commit(branch="good")) == ["e4"]
    assert store.version("good").episode("e4").labels["grade"] == 3
    assert made.commit.operations[0].how == "by hand"
    store.revert("main:2")
    assert "grade" not in store.version().episodes().column_names


def test_newer_labels_count_and_leave_the_others_alone(store: Store) -> None:
    store.version().annotate(labels(episode_id=["e0", "e1"], grade=[1, 2]))
    store.version().annotate(labels(episode_id=["e1", "e2"], grade=[5, None]))
    assert column(store, "grade") == [1, 5, None, None, None, None]
    store.version().annotate(labels(episode_id=["e2"], grade=[0.5]))
    assert column(store, "grade") == [1.0, 5.0, 0.5, None, None, None]
    with pytest.raises(UsageError, match="Expected numbers in 'grade' as before, came texts"):
        store.version().annotate(labels(episode_id=["e2"], grade=["high"]))


def test_labels_may_correct_what_the_source_said_of_success(store: Store) -> None:
    chosen = store.version().where("length > 5")
    made = chosen.annotate(success=True, split=["a", "b", "c"], message="seen by me")
    assert made.message == "seen by me"
    assert column(store, "success") == [None] * 3 + [True] * 3
    assert made.episode("e5").success is True
    assert made.episode("e5").labels == {"split": "c"}
    assert store.version("main:2").episode("e5").success is None
    assert "length > 5" in made.commit.operations[0].how
    with pytest.raises(UsageError, match="3 values"):
        store.version().where("length > 5").annotate(split=["a"])


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        ({"episode_id": ["e1", "e9"], "g": [1, 2]}, NotFoundError, "came 1 unknown .*'e9'"),
        ({"episode_id": ["e1", "e1"], "g": [1, 2]}, UsageError, "'e1'"),
        ({"episode_id": ["e1"], "length": [7]}, UsageError, "what an episode is"),
        ({"episode_id": ["e1"], "digest": ["7"]}, UsageError, "what an episode is"),
        ({"episode_id": ["e1"], "_block": ["7"]}, UsageError, "does not start with '_'"),
        ({"episode_id": ["e1"], "smoothness": [0.1]}, UsageError, "penstock measure"),
        ({"episode_id": ["e1"], "kind": ["human"]}, UsageError, "came 'human'"),
        ({"episode_id": ["e1"], "success": ["yes"]}, UsageError, "truth values"),
        ({"episode_id": ["e1"], "g": [[1]]}, UsageError, "list"),
        ({"episode_id": ["e1"], "g": [None]}, UsageError, "nulls only"),
        ({"episode_id": ["e1"], "keep_start": [-1]}, UsageError, "from 0 on"),
        ({"episode_id": ["e1"]}, UsageError, "0 columns"),
        ({"episode_id": pa.array([], pa.string()), "g": []}, UsageError, "0 rows"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_labels_that_do_not_fit_are_refused(store, table, error, said) -> None:
    with pytest.raises(error, match=said):
        store.version().annotate(pa.table(table))
    assert store.version().number == 2


def test_a_column_of_the_source_keeps_its_name(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    store.append([episode("a", columns={"grade": 1})])
    with pytest.raises(UsageError, match="a column of the source"):
        store.version().annotate(labels(episode_id=["a"], grade=[2]))
    store.version().annotate(labels(episode_id=["a"], mark=[2]))
    # A source that comes later may have a column of that name in another type.
    store.append([episode("b", columns={"mark": "fine"})])
    assert column(store, "mark") == ["2", "fine"]


def test_an_older_version_needs_a_branch(store: Store) -> None:
    old = store.version("main:1")
    with pytest.raises(UsageError, match="--branch"):
        old.annotate(labels(episode_id=["e1"], g=[1]))
    made = old.annotate(labels(episode_id=["e1"], g=[1]), branch="marked")
    assert (made.branch, len(made)) == ("marked", 4)
    assert column(store, "g", "marked") == [None, 1, None, None]
    # On another branch's head, labels hold for the episodes that both have.
    old.annotate(labels(episode_id=["e2"], g=[2]), branch="main")
    assert column(store, "g") == [None, None, 2, None, None, None]


# -- races -------------------------------------------------------------------------------------


def racing(tmp_path: Path, act) -> Store:
    return store_on(Interrupted(tmp_path / "s", "branches/main", act))


def test_labels_and_appends_and_compaction_at_the_same_time(store, tmp_path) -> None:
    def meanwhile() -> None:
        store.append([episode("late", 9)])
        store.compact(everything=True)
        score(store, {"e1": 0.5})
        store.version().annotate(labels(episode_id=["e0", "e1"], g=[7, 7]))

    mine = racing(tmp_path, meanwhile)
    mine.version().annotate(labels(episode_id=["e1", "e5"], g=[1, 5]))
    fresh = open_store(store.url)
    assert ids_of(fresh.version()) == [*names(6), "late"]
    assert column(fresh, "g") == [7, 1, None, None, None, 5, None]
    assert column(fresh, "action_divergence")[1] == 0.5
    assert fresh.doctor().damage == []


def test_labels_say_nothing_of_content_that_was_replaced_meanwhile(store, tmp_path) -> None:
    def meanwhile() -> None:
        store.append([episode("e1", 4, seed=1)], on_change="replace")

    version = racing(tmp_path, meanwhile).version()
    version.annotate(labels(episode_id=["e1", "e2"], g=[1, 2]))
    fresh = open_store(store.url).version()
    assert dict(zip(ids_of(fresh), fresh.episodes()["g"].to_pylist(), strict=True))["e1"] is None
    assert fresh.episode("e2").labels == {"g": 2}


def test_labels_of_two_types_at_the_same_time_are_not_mixed(store, tmp_path) -> None:
    def meanwhile() -> None:
        store.version().annotate(labels(episode_id=["e0"], g=["text"]))

    with pytest.raises(UsageError, match="texts in 'g' as before"):
        racing(tmp_path, meanwhile).version().annotate(labels(episode_id=["e1"], g=[1]))
    assert column(open_store(store.url), "g") == ["text", *[None] * 5]


def test_writers_of_every_kind_at_once(store: Store) -> None:
    """Labels, arrays, appends, replacements, scores and compaction from processes' own stores."""
    rounds = 4

    def label(mine: Store, turn: int) -> None:
        mine.version().annotate(labels(episode_id=[f"e{turn}"], g=[turn]))

    def relabel(mine: Store, turn: int) -> None:
        mine.version().annotate_steps("rewards", {f"e{turn}": np.full(turn + 3, 5.0)})

    def append(mine: Store, turn: int) -> None:
        mine.append([episode(f"new{turn}", 4)])

    def replace(mine: Store, turn: int) -> None:
        mine.append([episode("e5", 2, seed=turn + 1)], on_change="replace")

    def compact(mine: Store, _turn: int) -> None:
        mine.compact(everything=True)

    def run(act) -> None:
        mine = open_store(store.url)
        for turn in range(rounds):
            act(mine, turn)

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(run, act) for act in (label, relabel, append, replace, compact)]:
            done.result()
    fresh = open_store(store.url)
    table = fresh.version().episodes().to_pylist()
    assert {row["episode_id"] for row in table} == {*names(6), *names(rounds, "new")}
    marked = {row["episode_id"]: row["g"] for row in table if row["g"] is not None}
    assert marked == {f"e{turn}": turn for turn in range(rounds)}
    for one in fresh.version().iter_episodes():
        is_new = one.episode_id in names(rounds)
        assert (one.rewards == 5).all() == is_new
    assert_same_episode(fresh.version().episode("e5"), episode("e5", 2, seed=rounds))
    assert fresh.doctor().damage == []


def test_a_diff_names_what_was_labelled_anew(store: Store) -> None:
    store.version().annotate(labels(episode_id=["e1", "e2"], g=[1, 2]))
    store.version().annotate(labels(episode_id=["e2"], success=[True]))
    store.version().annotate_steps("rewards", {"e4": np.full(7, 2.0)})
    assert store.diff("main:2", "main:3").relabelled == ("e1", "e2")
    assert store.diff("main:3", "main:4").relabelled == ("e2",)
    assert store.diff("main:4", "main:5").relabelled == ("e4",)
    assert store.diff("main:2", "main").rescored == ()
    assert store.diff("main", "main").relabelled == ()


def test_a_curation_keeps_the_labels_that_came_meanwhile(store, tmp_path) -> None:
    def meanwhile() -> None:
        store.version().annotate(labels(episode_id=["e5"], g=[1]))

    racing(tmp_path, meanwhile).version().where("length > 5").commit(branch="main")
    assert column(open_store(store.url), "g") == [None, None, 1]


def test_labels_outlive_gc_and_replaced_episodes_lose_theirs(store: Store) -> None:
    import datetime as dt

    store.version().annotate(labels(episode_id=["e0", "e1"], g=[1, 2]))
    store.append([episode("e1", 4, seed=3)], on_change="replace")
    store.gc(dt.timedelta(0))
    store.gc(dt.timedelta(0))
    fresh = open_store(store.url)
    assert sorted(filter(None, column(fresh, "g"))) == [1]
    assert store.version("main:3").episode("e1").labels == {"g": 2}
    assert fresh.doctor().damage == []


def test_erased_episodes_leave_labels_and_arrays(store: Store) -> None:
    store.version().annotate(labels(episode_id=["e0", "e1"], g=["secret-label", "x"]))
    store.version().annotate_steps("mask", {"e0": np.full(3, 77, np.int16), "e1": np.ones(4, "i2")})
    store.erase(["e0"])
    store.gc(erase=True)
    files = [path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()]
    assert not any(b"secret-label" in data for data in files)
    fresh = open_store(store.url).version()
    assert list(fresh.step_arrays()["mask"]) == ["e1"]
    assert fresh.episode("e1").labels == {"g": "x"}


# -- arrays of steps ---------------------------------------------------------------------------


def test_relabelled_rewards_stand_in_for_the_old_ones(store: Store) -> None:
    old = store.version()
    came = {name: old.episode(name) for name in names(6)}
    new = {"e1": np.arange(4.0), "e4": -np.arange(7.0)}
    made = old.annotate_steps("rewards", new)
    for name in names(6):
        wanted = came[name]
        if name in new:
            wanted = wanted.replace(rewards=new[name].astype(np.float32))
        assert_same_episode(made.episode(name), wanted)
    again = list(made.iter_episodes())
    assert_same_episode(again[1], came["e1"].replace(rewards=np.arange(4, dtype=np.float32)))
    rewards = np.concatenate([again[n].rewards for n in range(6)])
    np.testing.assert_array_equal(made.field("rewards").compute(), rewards)
    np.testing.assert_array_equal(np.concatenate(list(made.iter_field("rewards"))), rewards)
    raw = made.field("rewards", rows=True).compute()
    assert len(raw) == len(rewards) + 6
    np.testing.assert_array_equal(raw[4:8], np.arange(4))
    assert column(store, "episode_return")[1] == 6
    assert column(store, "episode_return", "main:2")[1] == came["e1"].episode_return
    store.version().annotate_steps("rewards", {"e1": np.ones(4)})
    assert store.version().episode("e1").episode_return == 4
    assert store.version().episode("e4").episode_return == -21
    store.revert("main:2")
    assert_same_episode(store.version().episode("e1"), came["e1"])


def test_other_arrays_read_as_extras(store: Store) -> None:
    masks = {name: np.arange(n + 3) % 2 == 0 for n, name in enumerate(names(6))}
    points = {"e2": np.ones((5, 2, 3), np.float16)}
    store.version().annotate_steps("keep_mask", masks)
    store.compact(everything=True)
    made = store.version().annotate_steps("points", points)
    np.testing.assert_array_equal(made.episode("e2").extras["points"], points["e2"])
    assert made.episode("e2").extras["points"].dtype == np.float16
    assert set(made.episode("e3").extras) == {"keep_mask"}
    found = made.field("extras/keep_mask").compute()
    np.testing.assert_array_equal(found, np.concatenate(list(masks.values())))
    with pytest.raises(UsageError, match="came 5 of 6 without"):
        made.field("extras/points")
    chosen = made.where("length == 5").commit(branch="one")
    assert chosen.field("extras/points").shape == (5, 2, 3)


def test_rewards_for_episodes_that_have_none(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    store.append([episode(name, rewards=None) for name in ("a", "b")])
    made = store.version().annotate_steps("rewards", {"a": np.ones(4), "b": np.zeros(4)})
    assert made.episode("a").rewards.tolist() == [1, 1, 1, 1]
    assert made.field("rewards").compute().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert column(store, "episode_return") == [4.0, 0.0]


@pytest.mark.parametrize(
    ("name", "values", "error", "said"),
    [
        ("rewards", {"e9": np.ones(4)}, NotFoundError, "'e9'"),
        ("rewards", {"e1": np.ones(5)}, UsageError, "4 rows"),
        ("rewards", {"e1": np.full(4, np.nan)}, UsageError, "finite"),
        ("rewards", {"e1": np.ones((4, 1))}, UsageError, "one number per step"),
        ("rewards", {"e1": np.array(["a"] * 4)}, UsageError, "numbers"),
        ("actions", {"e1": np.ones(4)}, UsageError, "an extra"),
        ("x", {"e1": np.ones(4), "e2": np.ones(5, int)}, UsageError, "one dtype"),
        ("x", {}, UsageError, "none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(store, name, values, error, said) -> None:
    with pytest.raises(error, match=said):
        store.version().annotate_steps(name, values)
    assert store.version().number == 2


def test_an_extra_that_episodes_came_with_is_not_hidden(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    store.append([episode("a", extras={"sim": np.ones((4, 2))})])
    with pytest.raises(UsageError, match="came with"):
        store.version().annotate_steps("sim", {"a": np.ones(4)})


def test_arrays_do_not_follow_content_that_was_replaced(store: Store) -> None:
    store.version().annotate_steps("rewards", {"e1": np.full(4, 9.0)})
    changed = episode("e1", 2, seed=5)
    store.append([changed], on_change="replace")
    assert_same_episode(open_store(store.url).version().episode("e1"), changed)


# -- kept steps --------------------------------------------------------------------------------


def test_fields_hold_the_steps_that_are_kept(store: Store) -> None:
    ids = names(6)
    made = store.version().annotate(
        labels(
            episode_id=ids,
            keep_start=[0, 1, None, 2, 5, 99],
            keep_stop=[3, 3, 4, 99, 5, None],
        )
    )
    spans = [(0, 3), (1, 3), (0, 4), (2, 6), (5, 5), (8, 8)]
    np.testing.assert_array_equal(made.index().keep, spans)
    episodes = [made.episode(name) for name in ids]
    cut = list(zip(episodes, spans, strict=True))
    wanted = np.concatenate([e.actions[a:b] for e, (a, b) in cut])
    np.testing.assert_array_equal(made.field("actions").compute(), wanted)
    wanted = np.concatenate(
        [e.observations["observations/state"][a : b + 1] for e, (a, b) in cut if b > a]
    )
    np.testing.assert_array_equal(made.field("observations/state").compute(), wanted)
    assert episodes[1].length == 4, "the episode itself stays whole"
    assert len(made.field("rewards", rows=True)) == sum(n + 4 for n in range(6))
    assert store.version("main:2").index().keep is None


def test_a_missing_final_observation_ends_no_kept_range_but_the_last(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    state = {"state": np.zeros((4, 3), np.float32)}
    short = [episode(n, observations=state, terminated=False, truncated=True) for n in "ab"]
    made = store.append(short)
    assert len(made.field("observations/state")) == 8
    made = made.annotate(labels(episode_id=["a", "b"], keep_start=[1, 1], keep_stop=[3, 4]))
    assert len(made.field("observations/state")) == 3 + 3
    assert len(made.field("actions")) == 2 + 3


def test_relabelled_rewards_of_kept_steps(store: Store) -> None:
    made = store.version().annotate_steps("rewards", {"e5": np.arange(8.0)})
    ids = names(6)
    made = made.annotate(labels(episode_id=ids, keep_start=[2] * 6, keep_stop=[4] * 6))
    assert made.field("rewards").compute()[-2:].tolist() == [2, 3]
