"""Prioritised draws: the sum tree, updates once per step, and what a state carries."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.store.store import Store
from pipeline.stream import plan
from pipeline.stream.mixture import Mixture
from pipeline.stream.priorities import SMALLEST, Priorities
from schemas.errors import ConfigError, UsageError
from tests.stream.conftest import made_episodes
from tests.stream.references import stream, take


@settings(max_examples=40)
@given(data=st.data(), count=st.integers(1, 40))
def test_the_tree_holds_the_sums_of_its_leaves(data: Any, count: int) -> None:
    priorities = Priorities(_Numbers(count), "v", 0.5)  # type: ignore[arg-type]
    values = np.ones(count)
    for _ in range(data.draw(st.integers(1, 5))):
        numbers = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9))
        told = data.draw(st.lists(st.floats(0, 1e6), min_size=len(numbers), max_size=len(numbers)))
        priorities.put(np.array(numbers), np.array(told))
        for number, value in zip(numbers, told, strict=True):  # of several the last counts
            values[number] = max(value, SMALLEST)
    np.testing.assert_array_equal(priorities.values, values)
    drawn, weights = priorities.draw(plan.random(3, 0, 64, steps=2), 0.4)
    chance = values**0.5 / (values**0.5).sum()
    # By the plain inverse of the running total, up to rounding where two transitions meet.
    ends = np.cumsum(chance)
    share = (plan.random(3, 0, 64, steps=2) >> np.uint64(11)) * 2.0**-53
    low = np.searchsorted(ends, share - 1e-9, side="right")
    high = np.searchsorted(ends, share + 1e-9, side="right")
    assert ((low <= drawn) & (drawn <= np.minimum(high, count - 1))).all()
    expected = (count * chance[drawn]) ** -0.4
    expected /= expected.max(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


class _Numbers:
    """So many transitions, which is all that a tree asks of its index."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def prioritised(store: Store, **settings: Any) -> Any:
    return stream(store.version(), sampler="prioritised", batch_size=32, **settings)


def test_draws_follow_the_priorities(store: Store) -> None:
    made = prioritised(store, priority_alpha=1.0, priority_beta=1.0)
    index = made.feed.at(0).index
    positions = index.find(np.arange(len(index)))[1]
    wanted = np.where(np.arange(len(index)) < 100, 9.0, 1.0)
    made.update_priorities(positions, wanted)
    batches = take(made, 2000)
    numbers = np.concatenate([index.numbers_at(batch["indices"]) for batch in batches])
    seen = np.bincount(numbers, minlength=len(index))
    assert 1e-4 < stats.chisquare(seen, wanted / wanted.sum() * seen.sum()).pvalue < 1 - 1e-4
    heavy = index.numbers_at(batches[0]["indices"]) < 100
    np.testing.assert_allclose(batches[0]["weights"][heavy], 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(batches[0]["weights"][~heavy], 1)


def train(made: Any, steps: int) -> list[np.ndarray]:
    """Batches, each answered with priorities made of what it holds."""
    return [batch["indices"] for batch in take_and_tell(made, steps)]


def take_and_tell(made: Any, steps: int) -> list[dict[str, Any]]:
    batches = []
    for _ in range(steps):
        batch = next(made)
        made.update_priorities(batch["indices"], np.abs(batch["rewards"]) % 7)
        batches.append(batch)
    return batches


def test_a_state_carries_the_priorities(store: Store) -> None:
    made = prioritised(store)
    train(made, 20)
    state = json.loads(json.dumps(made.state_dict()))
    again = prioritised(store, residency="ram")
    again.load_state_dict(state)
    np.testing.assert_array_equal(train(again, 15), train(made, 15))
    fresh = prioritised(store)
    take(fresh, 20)
    assert (np.array(train(fresh, 5)) != np.array(train(made, 5))).any()


@pytest.mark.parametrize("wrong", ["", "AAAA", "é", "eJwDAAAAAAE="])
def test_broken_priorities_are_refused(store: Store, wrong: str) -> None:
    state = prioritised(store).state_dict()
    broken = {**state, "priorities": {**state["priorities"], "values": wrong}}
    with pytest.raises(ConfigError, match="priorities"):
        prioritised(store).load_state_dict(broken)


def test_ranks_agree_once_all_know_all_priorities(store: Store) -> None:
    alone = prioritised(store, seed=3)
    wanted = train(alone, 12)
    ranks = [prioritised(store, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for step in range(12):
        batches = [next(rank) for rank in ranks]
        joined = np.concatenate([batch["indices"] for batch in batches])
        np.testing.assert_array_equal(joined, wanted[step])
        told = [(b["indices"], np.abs(b["rewards"]).astype(np.float64) % 7) for b in batches]
        for rank, (indices, priorities) in zip(ranks, told, strict=True):
            rank.update_priorities(indices, priorities, all_gather=lambda _, told=told: told)
    with pytest.raises(UsageError, match="all_gather"):
        ranks[0].update_priorities(joined, np.ones(len(joined)))


def test_a_followed_version_keeps_what_is_known(store: Store) -> None:
    made = prioritised(store)
    index = made.feed.at(0).index
    made.update_priorities(index.find(np.arange(len(index)))[1], np.full(len(index), 0.001))
    made.update_priorities(index.find(np.array([5]))[1], [50.0])
    made.follow(store.append(made_episodes(range(30, 34))))
    found = made._current_priorities()
    assert found.values[5] == 50
    assert (found.values[len(index) :] == 50).all(), "what is new is drawn soon"
    assert np.median(found.values[: len(index)]) == 0.001
    rows = np.concatenate([batch["indices"] for batch in take(made, 10)])
    assert (rows > index.spans.stop.max()).mean() > 0.5


def test_tensors_are_told_as_they_come(store: Store) -> None:
    torch = pytest.importorskip("torch")
    made = prioritised(store, framework="torch")
    batch = next(made)
    errors = torch.linspace(0, 1, 32, requires_grad=True)
    made.update_priorities(batch["indices"], errors)
    assert made._current_priorities().values.max() == 1


@pytest.mark.parametrize(
    ("indices", "priorities", "said"),
    [
        ([0, 1], [1.0], "one priority per index"),
        ([0], [float("nan")], "finite"),
        ([0], [-1.0], "at least 0"),
        ([10**9], [1.0], "indices of batches"),
        ([-1], [1.0], "indices of batches"),
    ],
)
def test_updates_that_do_not_fit_are_refused(
    store: Store, indices: list[int], priorities: list[float], said: str
) -> None:
    made = prioritised(store)
    with pytest.raises(UsageError, match=said):
        made.update_priorities(np.array(indices), np.array(priorities))
    assert (made._current_priorities().values == 1).all()
    with pytest.raises(UsageError, match="sampler='prioritised'"):
        stream(store.version()).update_priorities([0], [1.0])


def test_a_mixture_tells_its_sources(store: Store) -> None:
    def mixed(**settings: Any) -> Mixture:
        one = stream(store.version(), **settings)
        other = stream(store.version(), sampler="prioritised", **settings)
        return Mixture([(one, 0.4), (other, 0.6)], batch_size=20)

    mixture = mixed()
    with pytest.raises(UsageError, match="yielded a batch"):
        mixture.update_priorities([], [])
    wanted = take_and_tell(mixture, 10)
    is_first = wanted[-1]["is_demonstration"]
    assert (wanted[-1]["weights"][is_first] == 1).all()
    assert (wanted[-1]["weights"][~is_first] != 1).any()
    resumed = mixed()
    state = json.loads(json.dumps(mixture.state_dict()))
    resumed.load_state_dict(state)
    for mine, theirs in zip(take_and_tell(resumed, 5), take_and_tell(mixture, 5), strict=True):
        np.testing.assert_array_equal(mine["indices"], theirs["indices"])
    ranks = [mixed(rank=rank, world_size=2) for rank in range(2)]
    for step in range(10):
        batches = [next(rank) for rank in ranks]
        joined = np.concatenate([batch["indices"] for batch in batches])
        np.testing.assert_array_equal(joined, wanted[step]["indices"])
        told = [(b["indices"], np.abs(b["rewards"]) % 7) for b in batches]
        for rank in ranks:
            rank.update_priorities(*told[0], all_gather=lambda _, told=told: told)
    with pytest.raises(UsageError, match="of 20 rows"):
        mixture.update_priorities([0], [1.0])


def test_the_description_says_what_is_not_promised(store: Store) -> None:
    said = prioritised(store, priority_beta=0.7).describe()
    assert "outside the guarantee" in said
    assert "beta 0.7" in said
