"""Mistakes that published code has made, each held off from a file or a store to the batch.

Elsewhere: the order of IQL's updates (test_iql), what a minimum and a mixture of RLPD hold
(test_soft, test_algorithms), calibration of rows whatever they say of themselves (test_soft).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from connectors.d4rl import D4rlSource
from learners.checkpoint import load_checkpoint, restore
from learners.data import Pinned, Sampling, open_stream, pin
from learners.evaluate import evaluate
from learners.growing import Growing, open_growing
from learners.rollout import Collection, Facts, collect
from learners.runlog import EVALUATIONS, read_table
from learners.settings import StreamNeeds
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from tests.learners.homing import ENVIRONMENT
from tests.learners.worked import learner

LENGTH, EPISODES = 20, 10
DISCOUNT = 0.9


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))


def draw(store: Store, rows: int = 4_000, **given: Any) -> dict[str, np.ndarray]:
    """One large batch of a store's newest version."""
    sampling = Sampling(rows, 0, DISCOUNT, "cpu", episode_ids=True, **given)
    batch = next(iter(open_stream(pin((store.url,)), sampling)))
    return {name: np.asarray(batch[name]) for name in batch}


def number_of(ids: np.ndarray) -> np.ndarray:
    return np.array([int(str(name).rsplit("_", 1)[-1]) for name in ids])


# -- episodes end where the file says, and not every so many rows ------------------------------


@pytest.fixture
def timed_out(tmp_path: Path) -> Store:
    """Ten episodes of 20 steps that a time limit ended, each worth its number; flat, as D4RL's."""
    number = np.repeat(np.arange(EPISODES), LENGTH)
    timeouts = np.tile(np.arange(LENGTH) == LENGTH - 1, EPISODES)
    with h5py.File(tmp_path / "timed-out.hdf5", "w") as file:
        file["observations"] = np.stack([number, np.tile(np.arange(LENGTH), EPISODES)], 1).astype(
            np.float32
        )
        file["actions"] = number[:, None].astype(np.float32) / EPISODES
        file["rewards"] = number.astype(np.float32)
        file["terminals"] = np.zeros(len(number), bool)
        file["timeouts"] = timeouts
    source, store = D4rlSource(), open_store(tmp_path / "store", create=True)
    found = [
        one
        for unit in source.discover(str(tmp_path / "timed-out.hdf5")).units
        for one in source.read(unit)
    ]
    assert [one.fault for one in found] == [None] * EPISODES
    store.append(
        one.episode.replace(episode_id=f"e_{one.position}") for one in found if one.episode
    )
    return store


def test_whole_episodes_are_kept_though_the_last_step_of_each_is_no_transition(
    timed_out: Store,
) -> None:
    """CORL drops that step first and then cuts every `LENGTH` rows, so its groups mix episodes."""
    table = timed_out.version().episodes(columns=["episode_return", "length"]).to_pylist()
    assert sorted(row["episode_return"] for row in table) == [LENGTH * k for k in range(EPISODES)]
    assert {row["length"] for row in table} == {LENGTH}
    batch = draw(timed_out)
    episode, step = batch["observations"].T
    assert (number_of(batch["episode_ids"]) == episode).all()
    assert (batch["next_observations"][:, 0] == episode).all()
    assert (batch["next_observations"][:, 1] == step + 1).all()
    assert step.max() == LENGTH - 2


def test_the_best_tenth_is_one_episode_and_no_piece_of_another(timed_out: Store) -> None:
    best = timed_out.version().where("episode_return >= quantile(episode_return, 0.95)")
    best.commit("best")
    sampling = Sampling(500, 0, DISCOUNT, "cpu")
    batch = next(iter(open_stream(pin((f"{timed_out.url}@best",)), sampling)))
    assert set(np.asarray(batch["observations"])[:, 0]) == {EPISODES - 1}
    assert set(np.asarray(batch["observations"])[:, 1]) == set(range(LENGTH - 1))


# -- only what the task ended stops bootstrapping ----------------------------------------------


def ended(number: int, rewards: list[float], *, terminated: bool) -> Episode:
    T = len(rewards)
    observations = np.stack([np.full(T + 1, number), np.arange(T + 1)], 1).astype(np.float32)
    return Episode(
        episode_id=f"e_{number}",
        observations=observations,  # type: ignore[arg-type]
        actions=np.zeros((T, 1), np.float32),
        rewards=np.array(rewards, np.float32),
        terminated=terminated,  # type: ignore[arg-type]
        truncated=not terminated,  # type: ignore[arg-type]
    )


def test_a_time_limit_is_no_end_of_the_task(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(ended(k, [1.0] * 5, terminated=k == 1) for k in range(2))
    batch = draw(store, 400)
    episode, step = batch["observations"].T
    stops = (episode == 1) & (step == 4)
    assert 0 < stops.sum() < len(stops)
    np.testing.assert_allclose(batch["discounts"], np.where(stops, 0.0, DISCOUNT), rtol=1e-6)
    assert ((episode == 0) & (step == 4)).any(), "the truncated step is a transition, too"


# -- returns of sparse tasks -------------------------------------------------------------------


def floors(store: Store) -> dict[tuple[int, int], float]:
    """What Cal-QL holds each row's values against, by episode and step."""
    needs = StreamNeeds(returns="monte_carlo")
    sampling = Sampling(600, 0, 0.99, "cpu", needs=needs)
    batch = next(iter(open_stream(pin((store.url,)), sampling)))
    made = learner("cal_ql", failed_reward=0.0)
    floor = made.value_floor(batch)[0].tolist()
    keys = np.asarray(batch["observations"]).astype(int).tolist()
    return {(k, t): value for (k, t), value in zip(keys, floor, strict=True)}


def test_a_trajectory_failed_by_all_its_rewards_not_by_its_last(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(
        [
            ended(0, [0, 0, 1, 0], terminated=False),  # succeeded, and went on
            ended(1, [0, 0, 0, 0], terminated=False),
            ended(2, [0, 0, 0, 1], terminated=True),
        ]
    )
    found = floors(store)
    assert [found[0, t] for t in range(3)] == pytest.approx([0.99**2, 0.99, 1.0])
    assert [found[1, t] for t in range(4)] == pytest.approx([0.0] * 4)
    assert [found[2, t] for t in range(4)] == pytest.approx([0.99 ** (3 - t) for t in range(4)])


def test_a_failure_of_minus_ones_goes_on_for_ever(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append([ended(0, [-1.0] * 5, terminated=False)])
    needs = StreamNeeds(returns="monte_carlo")
    batch = next(iter(open_stream(pin((store.url,)), Sampling(64, 0, 0.99, "cpu", needs=needs))))
    floor = learner("cal_ql", failed_reward=-1.0).value_floor(batch)[0]
    assert floor.tolist() == pytest.approx([-100.0] * 64, rel=1e-5)


def test_rollouts_bring_returns_of_their_own(tmp_path: Path) -> None:
    """Calibration stays on: rows of rollouts have what their episode earned, and not 0."""
    store = open_store(tmp_path / "store", create=True)
    old = store.append([ended(0, [0.0] * 6, terminated=True)])
    rollout = ended(1, [0.0, 0.0, 5.0], terminated=True).replace(kind="rollout")
    online = store.append([rollout], branch="online")
    sampling = Sampling(64, 0, DISCOUNT, "cpu", needs=StreamNeeds(returns="monte_carlo"))
    mixture = open_growing((Pinned(store.url, old.id),), Growing(online, 0.5), sampling)
    batch = next(mixture)
    episode, step = np.asarray(batch["observations"]).T
    returns = np.asarray(batch["returns_to_go"])
    assert (episode == 1).sum() == 32
    np.testing.assert_allclose(
        returns, np.where(episode == 1, 5.0 * DISCOUNT ** (2 - step), 0.0), rtol=1e-5
    )


# -- what the Decision Transformer is shown ----------------------------------------------------


def test_windows_come_in_proportion_to_the_length_of_their_episode(tmp_path: Path) -> None:
    lengths = [5, 20, 75]
    store = open_store(tmp_path / "store", create=True)
    store.append(ended(k, [1.0] * T, terminated=True) for k, T in enumerate(lengths))
    dt = learner("dt", target_return=1.0, context=4)
    batch = draw(store, 20_000, needs=dt.needs(dt.settings))
    shares = np.bincount(number_of(batch["episode_ids"]), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.05, 0.20, 0.75], atol=0.015)


# -- the last policy is judged, not the best one -----------------------------------------------


class Fleeing:
    """Goes away from home as fast as it can."""

    def act(self, observations: Any) -> np.ndarray:
        return np.where(np.asarray(observations) > 0, 1.0, -1.0)


@pytest.mark.usefixtures("homing")
def test_a_run_is_judged_by_its_last_policy(tmp_path: Path) -> None:
    """Here the policy gets worse by learning, so whoever takes the best score takes another one."""
    store = open_store(tmp_path / "store", create=True)
    store.append(collect(Fleeing(), Collection(ENVIRONMENT, episodes=20), Facts("fleeing")))
    run = train(
        TrainConfig(
            algo="bc",
            data=(store.url,),
            out=str(tmp_path / "run"),
            steps=200,
            batch_size=32,
            settings={"hidden": (16, 16), "learning_rate": 3e-4},
            environment=ENVIRONMENT,
            evaluate_every=10,
            evaluate_episodes=10,
        )
    )
    table = read_table(tmp_path / "run" / EVALUATIONS)
    scores = [float(row["mean_return"]) for row in table]
    last = evaluate(restore(load_checkpoint(tmp_path / "run")), ENVIRONMENT, 10)
    assert len(scores) == 20
    assert max(scores) > scores[-1] + 1.0
    assert run.evaluation is not None
    assert run.evaluation.mean_return == scores[-1] == last.mean_return
