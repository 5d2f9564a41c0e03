"""Goals: where they are taken from, how often, and what reaching them is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.errors import ConfigError, UnknownNameError, UsageError
from schemas.stream import GOAL_KINDS
from tests.stream.conftest import made_episode, made_episodes
from tests.stream.references import Reference, stream, take

KEEP = {1: (2, 6), 6: (1, 400), 7: (0, 3)}


def unseen_end(number: int, length: int) -> Episode:
    """A terminated episode whose final observation is missing."""
    flags = np.arange(length) == length - 1
    lost = made_episode(number, length, ends="lost")
    return lost.replace(terminated=flags, truncated=np.zeros(length, bool))


def episodes() -> list[Episode]:
    return [*made_episodes(range(12), seed=4), unseen_end(12, 6), made_episode(13, 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, str, Reference]:
    """Episodes of all ends in two blocks, some steps of some kept; a cache; loops over them."""
    folder: Path = tmp_path_factory.mktemp("goals")
    store = open_store(folder / "store", create=True)
    store.append(episodes()[:7])
    store.append(episodes()[7:])
    table = {
        "episode_id": [f"e{k}" for k in KEEP],
        "keep_start": [start for start, _ in KEEP.values()],
        "keep_stop": [stop for _, stop in KEEP.values()],
    }
    version = store.version().annotate(pa.table(table))
    return version, str(folder / "cache"), Reference(episodes(), KEEP)


def last_seen(known: Reference, episode: int) -> int:
    """Step of the last observation that may be a goal."""
    it, stop = known.episodes[episode], known.steps(episode)[1]
    return stop if stop < it.length or it.final_observation == "present" else stop - 1


def allowed(known: Reference, kind: str, position: int) -> set[float]:
    """First numbers of the observations that a goal of an anchor may be."""
    place = known.place(position)
    last = last_seen(known, place.episode)
    times = {
        "current": range(place.t, place.t + 1),
        "final": range(last, last + 1),
        "future": range(min(place.t + 1, last), last + 1),
        "geometric": range(min(place.t + 1, last), last + 1),
        "episode": range(known.steps(place.episode)[0], last + 1),
        "random": (),
    }[kind]
    if kind == "random":
        return {1000.0 * p.episode + p.t for p in known.places()}
    return {1000.0 * place.episode + t for t in times}


@pytest.mark.parametrize("kind", GOAL_KINDS)
def test_goals_are_where_their_kind_says(made: tuple[Version, str, Reference], kind: str) -> None:
    version, cache, known = made
    form = {"goals": kind, "cache_dir": cache, "discount": 0.9}
    batches = take(stream(version, batch_size=1024, **form), 8)
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    at = rows["goals"][:, 0]
    np.testing.assert_array_equal(rows["goals"], np.stack([at, -at, at / 2], axis=1))
    came: dict[int, set[float]] = {}
    for position, goal in zip(rows["indices"].tolist(), at.tolist(), strict=True):
        came.setdefault(position, set()).add(goal)
    assert len(came) == len(known.places())
    for position, goals in came.items():
        assert goals <= allowed(known, kind, position)
        if kind != "random" and len(allowed(known, kind, position)) <= 2:
            assert goals == allowed(known, kind, position)
    if kind == "random":
        assert set(at.tolist()) == allowed(known, kind, 0)


@pytest.mark.parametrize("kind", ["future", "episode", "geometric"])
def test_goals_have_their_chances(tmp_path: Path, kind: str) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append([made_episode(0, 9, ends="truncated")])
    form = {"goals": kind, "discount": 0.7, "goal_rewards": False, "cache_dir": str(tmp_path / "c")}
    batches = take(stream(store.version(), batch_size=4096, **form), 40)
    at = np.concatenate([batch["indices"] for batch in batches])
    goals = np.concatenate([batch["goals"][:, 0] for batch in batches]).astype(int)
    chosen = goals[at == 3]
    if kind == "geometric":
        offsets = np.arange(1, 7)
        chance = 0.3 * 0.7 ** (offsets - 1)
        chance[-1] = 0.7**5  # what would lead past the end stays there
        seen = np.bincount(chosen - 3, minlength=7)[1:]
    else:
        first = 4 if kind == "future" else 0
        chance = np.full(10 - first, 1 / (10 - first))
        seen = np.bincount(chosen, minlength=10)[first:]
    assert seen.sum() == len(chosen)
    assert 1e-4 < stats.chisquare(seen, chance * len(chosen)).pvalue < 1 - 1e-4


def test_kinds_are_mixed_by_their_probabilities(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append([made_episode(k, 50, ends="truncated") for k in range(40)])
    shares = {"random": 3, "current": 2, "geometric": 5}  # of any sum
    form = {"goals": shares, "cache_dir": str(tmp_path / "c")}
    made = stream(store.version(), batch_size=4096, **form)
    batch = next(made)
    at, goals = batch["observations"][:, 0].astype(int), batch["goals"][:, 0].astype(int)
    is_current, is_same = at == goals, at // 1000 == goals // 1000
    assert abs(is_current.mean() - 0.2) < 0.03
    assert abs((is_same & ~is_current).mean() - 0.5 - 0.3 / 40) < 0.03
    for said in ("0.2 current", "0.5 geometric", "0.3 random", "'observations'"):
        assert said in made.describe()


@settings(max_examples=20)
@given(
    shares=st.dictionaries(st.sampled_from(GOAL_KINDS), st.integers(0, 9), min_size=1).filter(
        lambda shares: any(shares.values())
    ),
    window=st.none() | st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_reaching_the_goal_is_worth_zero(
    made: tuple[Version, str, Reference],
    shares: dict[str, float],
    window: int | None,
    seed: int,
) -> None:
    version, cache, known = made
    form: dict[str, Any] = {"goals": shares, "seed": seed, "cache_dir": cache, "batch_size": 64}
    if window is not None:
        form |= {"sampler": "window", "window": window}
    batch = next(stream(version, **form))
    plain = next(stream(version, **{**form, "goals": None}))
    np.testing.assert_array_equal(batch["indices"], plain["indices"])
    np.testing.assert_array_equal(batch["observations"], plain["observations"])
    for row, position in enumerate(batch["indices"].tolist()):
        goal = batch["goals"][row, 0]
        kinds = [kind for kind, share in shares.items() if share]
        assert any(goal in allowed(known, kind, position) for kind in kinds)
        place = known.place(position)
        for k in range(window or 1):
            got = {
                name: values[row] if window is None else values[row][k]
                for name, values in batch.items()
                if name in ("rewards", "terminated", "discounts")
            }
            if place.t + k >= known.steps(place.episode)[1]:
                assert got == {"rewards": 0, "terminated": False, "discounts": 0}
                continue
            reached = goal == 1000 * place.episode + place.t + k
            ended = bool(known.episodes[place.episode].terminated[place.t + k])
            assert got["rewards"] == (0 if reached else -1)
            assert got["terminated"] == (reached or ended)
            assert got["discounts"] == np.float32(0 if reached or ended else 0.99)


def test_goals_are_of_one_field(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    length = 12
    episode = Episode(
        episode_id="two",
        observations={"achieved": np.arange(length + 1.0)[:, None], "state": np.eye(length + 1)},
        actions=np.zeros((length, 1)),
        truncated=True,
    )
    store.append([episode])
    form = {"goals": "final", "cache_dir": str(tmp_path / "c")}
    names = list(episode.spec.fields)
    achieved = next(name for name in names if "achieved" in name)
    batch = next(stream(store.version(), goal_field=achieved, **form))
    assert (batch["goals"] == length).all()
    assert batch["goals"].shape == (256, 1)
    assert (batch["rewards"] == -1).all(), "there were none; they are made of the goals"
    with pytest.raises(UsageError, match="goal_field="):
        stream(store.version(), **form)
    with pytest.raises(UnknownNameError, match="achieved"):
        stream(store.version(), goal_field=achieved[:-1], **form)


def test_rewards_stay_if_they_are_to(made: tuple[Version, str, Reference]) -> None:
    version, cache, _ = made
    form = {"n_step": 3, "cache_dir": cache}
    batch = next(stream(version, goals="future", goal_rewards=False, **form))
    plain = next(stream(version, **form))
    for name, values in plain.items():
        np.testing.assert_array_equal(batch[name], values)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"goals": "finale"}, "'final'"),
        ({"goals": {"final": -1}}, "probability"),
        ({"goals": {"final": 0}}, "above 0"),
        ({"goals": {}}, "above 0"),
        ({"goals": "geometric", "discount": 1.0}, "goal_discount"),
        ({"goals": "final", "n_step": 2}, "goal_rewards"),
        ({"goal_field": "observations"}, "needs goals="),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    made: tuple[Version, str, Reference], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        stream(made[0], cache_dir=made[1], **wrong)


def test_the_discount_of_geometric_goals_is_part_of_the_state(
    made: tuple[Version, str, Reference],
) -> None:
    version, cache, _ = made
    state = stream(version, goals="geometric", discount=0.9, cache_dir=cache).state_dict()
    told = {"goals": "geometric", "discount": 0.9, "cache_dir": cache}
    with pytest.raises(ConfigError, match="settings"):
        stream(version, **told, goal_discount=0.5).load_state_dict(state)
    stream(version, **told, goal_discount=0.9).load_state_dict(state)
