"""Rollouts in a counting environment whose every number is known, and in a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from learners.environments import make_environment
from learners.evaluate import evaluate
from learners.rollout import Collection, Exploration, Facts, collect
from learners.scores import bootstrap_interval, normalized_score
from schemas.errors import ConfigError, UnknownNameError
from schemas.identity import digest

FACTS = Facts(namespace="run", policy="test", policy_version="v1")


class Counting(gym.Env[dict[str, Any], np.ndarray]):
    """Observes (seed, steps so far) in one buffer; ends by itself after 3 + seed % 3 steps."""

    observation_space: ClassVar[Any] = gym.spaces.Dict(
        {
            "count": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "even": gym.spaces.Box(0, 1, (1,), np.int8),
        }
    )
    action_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self.buffer = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.buffer[:] = (seed or 0, 0)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.buffer[1] += 1
        ended = bool(self.buffer[1] >= 3 + self.buffer[0] % 3)
        info = {"success": ended and self.buffer[0] % 2 == 0}
        return self._observation(), float(self.buffer[1]), ended, False, info

    def _observation(self) -> dict[str, Any]:
        return {"count": self.buffer, "even": np.array([self.buffer[1] % 2], np.int8)}


class Constant:
    """Acts the same everywhere, and keeps what it was shown."""

    def __init__(self, action: float = 0.25) -> None:
        self.action = action
        self.sizes: set[int] = set()

    def act(self, observations: Any) -> np.ndarray:
        self.sizes.add(len(observations["count"]))
        return np.full((len(observations["count"]), 2), self.action)

    def explore(self, observations: Any, noise: np.ndarray) -> np.ndarray:
        return self.act(observations) + np.array([0.1, 0.0]) * noise


@pytest.fixture(autouse=True)
def counting() -> Iterator[str]:
    gym.register("Counting-v0", entry_point=Counting, max_episode_steps=4, disable_env_checker=True)
    yield "Counting-v0"
    del gym.registry["Counting-v0"]


def test_episodes_hold_every_observation_and_end_as_they_ended() -> None:
    episodes = list(collect(Constant(), Collection("Counting-v0", episodes=6, seed=30), FACTS))
    assert [episode.episode_id for episode in episodes] == [f"run/{k}" for k in range(6)]
    for k, episode in enumerate(episodes):
        seed = 30 + k
        length = min(3 + seed % 3, 4)
        steps = np.arange(length + 1)
        assert episode.seed == seed
        assert episode.final_observation == "present"
        counts = np.stack([np.full(length + 1, seed), steps], axis=1)
        np.testing.assert_array_equal(episode.observations["observations/count"], counts)
        np.testing.assert_array_equal(episode.observations["observations/even"][:, 0], steps % 2)
        assert episode.rewards is not None
        np.testing.assert_array_equal(episode.rewards, steps[1:])
        assert episode.is_terminated == (3 + seed % 3 <= 4)
        assert episode.is_truncated == (length == 4)
        assert episode.success == (episode.is_terminated and seed % 2 == 0)
        assert (episode.task, episode.policy_version) == ("Counting-v0", "v1")


def test_slots_change_neither_content_nor_order() -> None:
    plan = Collection("Counting-v0", episodes=7, seed=3, exploration=Exploration("gaussian", 0.2))
    alone = list(collect(Constant(), Collection(**{**vars(plan), "slots": 1}), FACTS))
    together = list(collect(Constant(), plan, FACTS))
    assert [digest(one) for one in alone] == [digest(two) for two in together]


def test_batches_keep_their_size_to_the_end() -> None:
    actor = Constant()
    list(collect(actor, Collection("Counting-v0", episodes=9, slots=4), FACTS))
    assert actor.sizes == {4}


def test_collecting_by_steps_plays_whole_episodes() -> None:
    plan = Collection("Counting-v0", steps=10, seed=0, slots=1)
    episodes = list(collect(Constant(), plan, FACTS))
    assert [episode.length for episode in episodes] == [3, 4, 4]


def test_a_later_part_continues_the_numbers() -> None:
    whole = list(collect(Constant(), Collection("Counting-v0", episodes=5), FACTS))
    late = list(collect(Constant(), Collection("Counting-v0", episodes=2, first=3), FACTS))
    assert [digest(one) for one in whole[3:]] == [digest(two) for two in late]


def test_exploration_is_explicit() -> None:
    def actions(exploration: Exploration) -> np.ndarray:
        plan = Collection("Counting-v0", episodes=200, exploration=exploration)
        return np.concatenate([e.actions for e in collect(Constant(), plan, FACTS)])  # type: ignore[arg-type]

    assert (actions(Exploration()) == np.float32(0.25)).all()
    noisy = actions(Exploration("gaussian", 0.1)) - 0.25
    assert noisy.std(axis=0) == pytest.approx([0.1, 0.1], rel=0.1)
    own = actions(Exploration("policy", 2.0)) - 0.25
    assert own.std(axis=0) == pytest.approx([0.2, 0.0], rel=0.1, abs=1e-6)


def test_actions_are_kept_as_they_were_acted_out() -> None:
    (episode,) = collect(Constant(5.0), Collection("Counting-v0", episodes=1), FACTS)
    assert isinstance(episode.actions, np.ndarray)
    assert episode.actions.dtype == np.float32
    assert (episode.actions == 1.0).all()


def test_a_plan_says_how_much() -> None:
    for plan in (Collection("Counting-v0"), Collection("Counting-v0", episodes=1, steps=1)):
        with pytest.raises(ConfigError, match="not both"):
            list(collect(Constant(), plan, FACTS))


@pytest.mark.parametrize("name", ["InvertedPendulm-v5", "os:Env-v0"])
def test_only_registered_environments_are_made(name: str) -> None:
    with pytest.raises(UnknownNameError, match="registered Gymnasium environment"):
        make_environment(name)


def test_an_unknown_environment_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'InvertedPendulum-v5'"):
        make_environment("InvertedPendulm-v5")


class Switches(Counting):
    """Several discrete actions at once."""

    action_space = gym.spaces.MultiDiscrete([2, 3])


def test_an_environment_of_several_discrete_actions_is_refused() -> None:
    gym.register("Switches-v0", entry_point=Switches, disable_env_checker=True)
    try:
        with pytest.raises(ConfigError, match=r"Box of actions, or a Discrete one, came Multi"):
            list(collect(Constant(), Collection("Switches-v0", episodes=1), FACTS))
    finally:
        del gym.registry["Switches-v0"]


def test_evaluation_adds_up_and_repeats() -> None:
    found = evaluate(Constant(), "Counting-v0", episodes=6, seed=30)
    assert found.returns == (6.0, 10.0, 10.0, 6.0, 10.0, 10.0)
    assert found.lengths == (3, 4, 4, 3, 4, 4)
    assert found.mean_return == pytest.approx(52 / 6)
    assert found.success == pytest.approx(1 / 6 + 1 / 6)
    assert found.interval[0] <= found.mean_return <= found.interval[1]
    assert found == evaluate(Constant(), "Counting-v0", episodes=6, seed=30)
    assert found.normalized_score is None


def test_normalised_scores_are_those_of_d4rl() -> None:
    assert normalized_score("Hopper-v5", -20.272305) == 0.0
    assert normalized_score("Hopper-v4", 3234.3) == pytest.approx(100.0)
    assert normalized_score("Pendulum-v1", 0.0) is None


def test_bootstrap_interval_has_its_textbook_width() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(np.array([3.0])) == (3.0, 3.0)


def test_a_real_environment_repeats_itself() -> None:
    class Still:
        def act(self, observations: Any) -> np.ndarray:
            return np.zeros((len(observations), 1))

    plan = Collection("InvertedPendulum-v5", episodes=3, exploration=Exploration("gaussian", 0.1))
    one, two = (list(collect(Still(), plan, FACTS)) for _ in range(2))
    assert [digest(e) for e in one] == [digest(e) for e in two]
    assert all(e.is_terminated and e.length > 1 for e in one)
    assert one[0].observations["observations"].dtype == np.float64
