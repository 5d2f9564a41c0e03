"""Samplers: what they draw, how often, and the same on any split, residency and resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.counts import Counts
from pipeline.stream.mixture import Mixture
from pipeline.stream.shares import Annealed
from pipeline.stream.shuffle import Shuffle
from schemas.episode import Episode
from schemas.errors import ConfigError, UnknownNameError, UsageError
from tests.stream.conftest import ENDS, made_episode, made_episodes
from tests.stream.references import Reference, sha_of_rows, stream, take

MakeStore = Callable[[list[Episode]], Store]
DRAWS = 10_000_000 if os.environ.get("PENSTOCK_LONG") == "1" else 1_000_000

PURE: dict[str, dict[str, Any]] = {
    "transition": {},
    "n_step": {"n_step": 3},
    "length_proportional": {"sampler": "length_proportional"},
    "episode": {"sampler": "episode"},
    "weighted": {"sampler": "weighted", "weights": "length"},
    "window": {"sampler": "window", "window": 4, "history": 2},
    "chunk": {"sampler": "window", "action_chunk": 4, "frame_stack": 2, "n_step": 2},
    "shuffle": {"sampler": "shuffle", "shuffle_window": 2},
    "returns": {"returns": "monte_carlo"},
    "goals": {"goals": {"current": 0.2, "geometric": 0.5, "random": 0.3}},
}
KEEP = {1: (2, 6), 4: (0, 3), 6: (1, 400), 9: (5, 5)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, str, Reference]:
    """Four blocks of episodes with kept steps and a column of weights; its cache; loops over it."""
    folder: Path = tmp_path_factory.mktemp("samplers")
    store = open_store(folder / "store", create=True)
    episodes = made_episodes(range(20), seed=3)
    for start in range(0, 20, 5):
        store.append(episodes[start : start + 5])
    table = {
        "episode_id": [e.episode_id for e in episodes],
        "keep_start": [KEEP.get(k, (None, None))[0] for k in range(20)],
        "keep_stop": [KEEP.get(k, (None, None))[1] for k in range(20)],
        "grade": [float(k % 4) for k in range(20)],
    }
    version = store.version().annotate(pa.table(table))
    return version, str(folder / "cache"), Reference(episodes, KEEP)


@pytest.mark.parametrize("name", PURE)
def test_one_order_for_any_split_residency_and_resume(
    kept: tuple[Version, str, Reference], name: str
) -> None:
    version, cache, _ = kept
    form = {**PURE[name], "batch_size": 24, "seed": 5, "cache_dir": cache}
    names = sorted(set(next(stream(version, **form))) - {"episode_ids"})
    whole = sha_of_rows([stream(version, **form)], 40, names)
    for world_size, residency in ((2, "ram"), (3, "mmap"), (4, "ram"), (8, "mmap")):
        split = [
            stream(version, **form, rank=rank, world_size=world_size, residency=residency)
            for rank in range(world_size)
        ]
        assert sha_of_rows(split, 40, names) == whole
    for stop in np.random.default_rng(7).integers(1, 40, 4).tolist():
        first = stream(version, **form)
        take(first, stop)
        state = json.loads(json.dumps(first.state_dict()))
        again = [stream(version, **form, rank=rank, world_size=2) for rank in range(2)]
        for one in again:
            one.load_state_dict(state)
        rest = stream(version, **form)
        take(rest, stop)
        assert sha_of_rows(again, 9, names) == sha_of_rows([rest], 9, names)


ORDERS = {
    **dict.fromkeys(
        ("transition", "n_step", "length_proportional", "window", "chunk"), "0da2f77492294699"
    ),
    "episode": "6efd2cd1263cf61a",
    "weighted": "914e5144399fd7d1",
    "shuffle": "ad9f3a9f778054b7",
    "returns": "40a6785024a4d524",
    "goals": "f567997448164dcb",
}


@pytest.mark.parametrize("name", PURE)
def test_the_order_never_changes(kept: tuple[Version, str, Reference], name: str) -> None:
    """A release that changed one would break every recorded run."""
    version, cache, _ = kept
    made = stream(version, **PURE[name], batch_size=30, seed=7, cache_dir=cache)
    names = ["indices", "goals"] if name == "goals" else ["indices"]
    assert sha_of_rows([made], 64, names)[:16] == ORDERS[name]


@pytest.mark.parametrize("name", PURE)
def test_exactly_the_kept_transitions_are_drawn(
    kept: tuple[Version, str, Reference], name: str
) -> None:
    version, cache, known = kept
    form = {**PURE[name], "cache_dir": cache, "batch_size": 1024}
    places = known.places()
    if name == "returns":
        places = [p for p in places if _is_finished(known, p.episode)]
    expected = {known.position(place) for place in places}
    batches = take(stream(version, **form), 20)
    drawn = set(np.concatenate([batch["indices"] for batch in batches]).tolist())
    assert drawn == expected


def _is_finished(known: Reference, episode: int) -> bool:
    it = known.episodes[episode]
    is_whole = it.is_terminated or it.final_observation == "present"
    return is_whole or known.steps(episode)[1] < it.length - 1


# -- how often ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transition", "window", "episode", "weighted"])
def test_draws_have_their_chances(kept: tuple[Version, str, Reference], name: str) -> None:
    version, cache, known = kept
    form = dict(PURE[name], fields=["rewards"], cache_dir=cache, seed=11)
    if name == "weighted":
        form["weights"] = "grade"
    places = known.places()
    counts = np.bincount([place.episode for place in places], minlength=20)
    chance = {
        "episode": lambda p: 1 / counts[p.episode] / (counts > 0).sum(),
        "weighted": lambda p: p.episode % 4 / (counts * (np.arange(20) % 4)).sum(),
    }.get(name, lambda _: 1 / len(places))
    expected = np.array([chance(place) for place in places])
    positions = np.array([known.position(place) for place in places])
    seen = np.zeros(len(places), np.int64)
    for batch in take(stream(version, batch_size=8192, **form), DRAWS // 8192):
        seen += np.bincount(np.searchsorted(positions, batch["indices"]), minlength=len(places))
    assert (seen[expected == 0] == 0).all()
    found, expected = seen[expected > 0], expected[expected > 0]
    assert 1e-4 < stats.chisquare(found, expected * found.sum()).pvalue < 1 - 1e-4


def test_importance_weights_undo_the_chances(kept: tuple[Version, str, Reference]) -> None:
    version, cache, known = kept
    graded = version.where("grade > 0").commit(branch="graded")
    form = {"sampler": "weighted", "weights": "grade", "cache_dir": cache, "batch_size": 4096}
    batch = next(stream(graded, **form, episode_ids=True))
    grade = np.array([int(name[1:]) % 4 for name in batch["episode_ids"]])
    counts = np.array([len(range(*known.steps(k))) if k % 4 else 0 for k in range(20)])
    mean = (counts * (np.arange(20) % 4)).sum() / counts.sum()
    np.testing.assert_allclose(batch["weights"], mean / grade, rtol=1e-6)
    effective = (counts * (np.arange(20) % 4)).sum() ** 2 / (
        counts * (np.arange(20) % 4) ** 2
    ).sum()
    assert f"as good as {effective:,.0f} of {counts.sum()}" in stream(graded, **form).describe()


@pytest.mark.parametrize(
    ("grades", "said"),
    [
        ([1.0, float("nan"), 2.0], "nan"),
        ([1.0, -1.0, 2.0], "-1.0"),
        ([0.0, 0.0, 0.0], "above 0"),
        (["a", "b", "c"], "numbers"),
        ([1.0, None, 1.0], "nan"),
    ],
)
def test_weights_that_are_none_are_refused(
    make_store: MakeStore, grades: list[Any], said: str
) -> None:
    store = make_store([made_episode(k, 5) for k in range(3)])
    table = pa.table({"episode_id": ["e0", "e1", "e2"], "grade": grades})
    version = store.version().annotate(table)
    with pytest.raises(ConfigError, match=said):
        stream(version, sampler="weighted", weights="grade")
    with pytest.raises(UnknownNameError, match="'grade'"):
        stream(version, sampler="weighted", weights="grad")


def test_weights_may_be_true_and_tiny(make_store: MakeStore) -> None:
    store = make_store([made_episode(k, 5) for k in range(3)])
    table = {"episode_id": ["e0", "e1", "e2"], "ok": [True, False, True], "w": [1.0, 1e-300, 1e300]}
    version = store.version().annotate(pa.table(table))
    batch = next(stream(version, sampler="weighted", weights="ok", episode_ids=True))
    assert set(batch["episode_ids"]) == {"e0", "e2"}
    batch = next(stream(version, sampler="weighted", weights="w", episode_ids=True))
    assert set(batch["episode_ids"]) == {"e2"}


# -- n steps and returns -----------------------------------------------------------------------


@settings(max_examples=25)
@given(n_step=st.integers(1, 12), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_n_steps_stop_where_the_episode_does(
    kept: tuple[Version, str, Reference], n_step: int, gamma: float
) -> None:
    version, cache, known = kept
    form = {"n_step": n_step, "discount": gamma, "dtype": "float64", "cache_dir": cache}
    batch = next(stream(version, batch_size=128, **form))
    for row, position in enumerate(batch["indices"].tolist()):
        place = known.place(position)
        it, stop = known.episodes[place.episode], known.steps(place.episode)[1]
        total, at, factor = 0.0, place.t, 1.0
        while at < min(place.t + n_step, stop):
            total += factor * np.asarray(it.rewards)[at]
            factor *= gamma
            at += 1
            if it.terminated[at - 1]:
                factor = 0.0
                break
        np.testing.assert_allclose(batch["rewards"][row], total, rtol=1e-12)
        np.testing.assert_allclose(batch["discounts"][row], factor, rtol=1e-12)
        assert batch["terminated"][row] == it.terminated[at - 1]
        assert batch["truncated"][row] == it.truncated[at - 1]
        if not it.terminated[at - 1]:
            np.testing.assert_array_equal(
                batch["next_observations"][row, 0], 1000 * place.episode + at
            )


@pytest.mark.parametrize(("returns", "gamma"), [("to_go", 1.0), ("monte_carlo", 0.9)])
def test_returns_are_the_sums_of_what_is_left(
    kept: tuple[Version, str, Reference], returns: str, gamma: float
) -> None:
    version, cache, known = kept
    form = {"returns": returns, "discount": 0.9, "dtype": "float64", "cache_dir": cache}
    made = stream(version, batch_size=512, **form)
    batch = next(made)
    rows = zip(batch["indices"].tolist(), batch["returns_to_go"], batch["steps_to_go"], strict=True)
    for position, came, steps in rows:
        place = known.place(position)
        left = np.asarray(known.episodes[place.episode].rewards)[
            place.t : known.steps(place.episode)[1]
        ]
        np.testing.assert_allclose(came, (left * gamma ** np.arange(len(left))).sum(), rtol=1e-12)
        assert steps == len(left)
    firsts = [known.steps(known.place(at).episode)[0] for at in batch["indices"].tolist()]
    ts = [known.place(at).t for at in batch["indices"].tolist()]
    assert batch["timesteps"].tolist() == (np.array(ts) - firsts).tolist()
    assert "whose end is not known" in made.describe()
    window = next(stream(version, batch_size=64, sampler="window", window=5, **form))
    assert (np.diff(window["timesteps"])[window["mask"][:, 1:] == 1] == 1).all()
    for name in ("returns_to_go", "steps_to_go", "timesteps"):
        assert (window[name][window["mask"] == 0] == 0).all()
        assert (window[name][window["mask"] == 1] != 0).any()
    with pytest.raises(UsageError, match="rewards"):
        stream(version, fields=["observations"], returns=returns, cache_dir=cache)


def test_returns_need_a_finished_episode(make_store: MakeStore) -> None:
    store = make_store([made_episode(0, 5, ends="lost")])
    with pytest.raises(UsageError, match="finished"):
        stream(store.version(), returns="to_go")


def test_the_longest_returns_are_summed_in_double_precision(make_store: MakeStore) -> None:
    rewards = np.random.default_rng(0).normal(1e4, 1, 4000).astype(np.float32)
    episode = made_episode(0, 4000).replace(rewards=rewards)
    batch = next(stream(make_store([episode]).version(), returns="to_go", dtype="float64"))
    exact = np.cumsum(rewards[::-1].astype(np.float64))[::-1]
    np.testing.assert_allclose(batch["returns_to_go"], exact[batch["indices"]], rtol=1e-13)


# -- epochs ------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    window=st.integers(1, 10),
    seed=st.integers(0, 2**64 - 1),
    start=st.integers(0, 500),
)
def test_every_epoch_is_a_permutation_within_its_chunks(
    sizes: list[int], window: int, seed: int, start: int
) -> None:
    total = sum(sizes)
    shuffle = Shuffle(None, np.array(sizes), window)
    rows = shuffle.rows(np.arange(5 * total), seed, 0).reshape(5, total)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(total), (5, 1)))
    chunk_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in rows:
        open_chunks: list[int] = []
        for chunk in dict.fromkeys(chunk_of[epoch].tolist()):
            open_chunks.append(chunk)
        groups = [open_chunks[at : at + window] for at in range(0, len(open_chunks), window)]
        done = 0
        for group in groups:
            count = sum(sizes[chunk] for chunk in group)
            assert set(chunk_of[epoch[done : done + count]].tolist()) == set(group)
            done += count
    places = start + np.arange(40)
    other = Shuffle(None, np.array(sizes), window).rows(places, seed, 0)
    wanted = [shuffle.rows(np.array([place]), seed, 0)[0] for place in places.tolist()]
    np.testing.assert_array_equal(other, wanted)


def test_epochs_of_a_stream_are_exact(kept: tuple[Version, str, Reference]) -> None:
    version, cache, known = kept
    expected = sorted(known.position(place) for place in known.places())
    made = stream(version, sampler="shuffle", shuffle_window=2, batch_size=7, cache_dir=cache)
    rows = np.concatenate([batch["indices"] for batch in take(made, 3 * len(expected) // 7 + 1)])
    epochs = rows[: 3 * len(expected)].reshape(3, -1)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == expected
    assert (epochs[0] != epochs[1]).any()
    assert "distinct episodes" in made.describe()
    assert "first all chunks, 4, then the rows of each 2 together" in made.describe()


def test_a_followed_version_begins_an_epoch_of_its_own(store: Store) -> None:
    made = stream(store.version(), sampler="shuffle", batch_size=50)
    take(made, 7)
    made.follow(store.append([made_episode(90, 50)]))
    rows = np.concatenate([batch["indices"] for batch in take(made, made.transitions // 50 + 1)])
    assert len(set(rows[: made.transitions].tolist())) == made.transitions


def test_shuffled_rows_are_uniform_over_places(kept: tuple[Version, str, Reference]) -> None:
    """Where a row stands in an epoch is uniform, over seeds."""
    shuffle = [Shuffle(None, np.array([6, 6]), 1).rows(np.arange(12), s, 0) for s in range(3000)]
    first = np.bincount([rows[0] for rows in shuffle], minlength=12)
    assert 1e-4 < stats.chisquare(first).pvalue < 1 - 1e-4


# -- mixtures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PURE)
def test_mixtures_hold_any_sampler(kept: tuple[Version, str, Reference], name: str) -> None:
    version, cache, known = kept

    def mixed(**settings: Any) -> Mixture:
        one = stream(version, **PURE[name], cache_dir=cache, **settings)
        other = stream(version, **PURE[name], cache_dir=cache, seed=9, **settings)
        return Mixture([(one, 0.3), (other, 0.7)], batch_size=20, seed=2)

    whole = sha_of_rows([mixed()], 30)
    assert (
        sha_of_rows([mixed(rank=r, world_size=3, residency="ram") for r in range(3)], 30) == whole
    )
    state = mixed()
    batches = take(state, 11)
    resumed = mixed()
    resumed.load_state_dict(json.loads(json.dumps(state.state_dict())))
    np.testing.assert_array_equal(next(resumed)["indices"], next(state)["indices"])
    allowed = {known.position(place) for place in known.places()}
    assert set(np.concatenate([batch["indices"] for batch in batches]).tolist()) <= allowed
    if name == "shuffle":
        rows = np.concatenate([b["indices"][~b["is_demonstration"]] for b in take(mixed(), 60)])
        assert len(set(rows[: len(allowed)].tolist())) == len(allowed)


def test_weights_of_a_mixture_move_in_a_line(kept: tuple[Version, str, Reference]) -> None:
    version, cache, _ = kept

    def mixed(rank: int = 0, world_size: int = 1) -> Mixture:
        sources = [
            (stream(version, cache_dir=cache, seed=k, rank=rank, world_size=world_size), 1.0)
            for k in range(3)
        ]
        return Mixture(sources, batch_size=30, anneal=(50, 0.8, [0.2, 0.6, 0.2]))

    mixture = mixed()
    for step, batch in zip(range(70), mixture, strict=False):
        gone = min(step, 50) / 50
        due = [30 * (0.8 - 0.6 * gone), 30 * (0.1 + 0.5 * gone), 30 * (0.1 + 0.1 * gone)]
        counts = mixture.counts(step)
        assert sum(counts) == 30
        assert all(abs(count - share) < 1 + 1e-9 for count, share in zip(counts, due, strict=True))
        assert int(batch["is_demonstration"].sum()) == counts[0]
    assert "move to 0.2, 0.6, 0.2" in mixture.describe()
    assert sha_of_rows([mixed(r, 3) for r in range(3)], 60) == sha_of_rows([mixed()], 60)
    still = Mixture([(stream(version, cache_dir=cache), 1.0)] * 3, batch_size=30)
    with pytest.raises(ConfigError, match="anneal"):
        still.load_state_dict({**mixture.state_dict(), "weights": ["1/3"] * 3})
    for wrong in ((0, 0.5, 0.1), (5, 2.0, 0.1), (5, [1.0], [0.5, 0.5])):
        with pytest.raises(ConfigError):
            Mixture([(stream(version, cache_dir=cache), 1.0)] * 3, anneal=wrong)


@given(step=st.integers(0, 400), asked=st.lists(st.integers(0, 400), max_size=8))
def test_rows_before_a_step_are_the_sum(step: int, asked: list[int]) -> None:
    shares = Annealed(100, [Fraction(1), Fraction(3)], [Fraction(2), Fraction(1)], 17)
    counts = Counts(shares, 2)
    for other in asked:
        counts.before(other)
    each = [shares.counts(k) for k in range(step)]
    wanted = [sum(counts[source] for counts in each) for source in (0, 1)]
    assert list(counts.before(step)) == wanted


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sampler": "weighted"}, "needs weights"),
        ({"weights": "length"}, "'weighted'"),
        ({"sampler": "episode", "shuffle_window": 3}, "'shuffle'"),
        ({"priority_beta": 1.0}, "'prioritised'"),
        ({"n_step": 0}, "n_step"),
        ({"returns": "all"}, "returns"),
        ({"nstep": 3}, "'n_step'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    kept: tuple[Version, str, Reference], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        stream(kept[0], cache_dir=kept[1], **wrong)


def test_settings_are_part_of_the_state(kept: tuple[Version, str, Reference]) -> None:
    version, cache, _ = kept
    state = stream(version, cache_dir=cache).state_dict()
    with pytest.raises(ConfigError, match="settings"):
        stream(version, cache_dir=cache, n_step=2).load_state_dict(state)
    old = {name: value for name, value in state.items() if name != "settings"}
    stream(version, cache_dir=cache).load_state_dict(old)


def test_a_lost_end_is_never_and_a_terminated_one_always_drawn(make_store: MakeStore) -> None:
    episodes = [made_episode(k, 3, ends=ENDS[k % 3]) for k in range(6)]
    known = Reference(episodes)
    version = make_store(episodes).version()
    for name, form in PURE.items():
        if name == "returns":
            continue
        rows = np.concatenate([b["indices"] for b in take(stream(version, **form), 20)])
        drawn = {(known.place(p).episode, known.place(p).t) for p in set(rows.tolist())}
        assert {k for k, t in drawn if t == 2} == {0, 1, 3, 4}, name
