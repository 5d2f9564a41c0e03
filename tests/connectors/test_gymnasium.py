from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from connectors.gymnasium import (
    GymnasiumSource,
    Origin,
    collect,
    make_environment,
    random_policy,
)
from connectors.registry import source
from schemas.errors import MissingExtraError, UnknownNameError, UsageError
from tests.connectors.contracts import assert_same, check_source

SOURCE = GymnasiumSource()


class Counter(gymnasium.Env):
    """Counts steps into a buffer that it reuses, as fast environments do."""

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Dict(
        {"count": spaces.Box(0, 99, (1,), np.float32), "seen": spaces.Tuple([spaces.Discrete(9)])}
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, ends: str = "terminated") -> None:
        self.ends = ends
        self.count = np.zeros(1, np.float32)
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count[:] = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        is_end = bool(self.count[0] == 3)
        info = {"is_success": np.bool_(True)} if is_end else {}
        flags = (is_end and self.ends == "terminated", is_end and self.ends == "truncated")
        return self._observe(), float(action[0]), *flags, info

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> dict[str, Any]:
        return {"count": self.count, "seen": (int(self.count[0]),)}


def always(observation: Any, rng: np.random.Generator) -> Any:
    return [0.5, float(observation["count"][0])]


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_episodes_hold_every_observation(ends: str) -> None:
    env = Counter(ends)
    origin = Origin(kind="synthetic", policy="always", policy_version="3", task="count", run="r")
    episodes = list(collect(lambda: env, always, 2, seed=40, origin=origin))
    assert env.closed
    assert [e.episode_id for e in episodes] == ["r/40", "r/41"]
    for number, episode in enumerate(episodes, 40):
        assert (episode.length, episode.final_observation) == (3, "present")
        assert (episode.is_terminated, episode.is_truncated) == (
            ends == "terminated",
            ends == "truncated",
        )
        np.testing.assert_array_equal(
            episode.observations["observations/count"], np.float32([[0], [1], [2], [3]])
        )
        np.testing.assert_array_equal(episode.observations["observations/seen/0"], [0, 1, 2, 3])
        assert episode.actions.dtype == np.float32
        np.testing.assert_array_equal(episode.actions, [[0.5, 0], [0.5, 1], [0.5, 2]])
        np.testing.assert_array_equal(episode.rewards, [0.5, 0.5, 0.5])
        assert (episode.seed, episode.success, episode.fps) == (number, True, 20.0)
        assert (episode.kind, episode.policy, episode.policy_version, episode.task) == (
            "synthetic",
            "always",
            "3",
            "count",
        )


def test_any_single_episode_can_be_made_again() -> None:
    def play(first: int, count: int) -> list[Any]:
        policy = random_policy(make_environment("Pendulum-v1").action_space)
        return list(collect("Pendulum-v1", policy, count, seed=first))

    three = play(5, 3)
    [third] = play(7, 1)
    assert_same(three[2], third, ("seed", "task", "fps"))
    assert not np.array_equal(three[0].actions, three[1].actions)
    assert (third.task, third.fps) == ("Pendulum-v1", 20.0)
    assert third.episode_id != three[2].episode_id, "unnamed runs never share ids"


def test_as_a_source() -> None:
    listing, found = check_source(SOURCE, "CartPole-v1?episodes=4&seed=9")
    assert listing.identity == "gymnasium/CartPole-v1/random"
    assert [f.native_id for f in found] == ["seed_9", "seed_10", "seed_11", "seed_12"]
    episode = found[0].episode
    assert episode is not None
    assert (episode.policy, episode.kind, episode.is_terminated) == ("random", "rollout", True)
    assert (episode.actions.dtype, episode.actions.shape) == (np.int64, (episode.length,))


@pytest.mark.parametrize(
    "name", ["Pendulun-v1", "Pendulum", "os:Pendulum-v1", "os.path:Pendulum-v1"]
)
def test_unknown_environments_name_the_nearest(name: str) -> None:
    for attempt in (make_environment, SOURCE.discover):
        with pytest.raises(UnknownNameError, match=r"did you mean.*'Pendulum-v1'"):
            attempt(name)


@pytest.mark.parametrize("query", ["episodes=-1", "seed=x", "policy=expert", "episodes="])
def test_other_options_are_refused(query: str) -> None:
    with pytest.raises(UsageError, match="Expected Pendulum-v1"):
        SOURCE.discover(f"Pendulum-v1?{query}")


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "connectors.gymnasium")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"penstock\[sim\]"):
        source("gymnasium")


def test_an_environment_whose_package_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make() -> None:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setitem(
        gymnasium.registry, "Toy-v0", gymnasium.envs.registration.EnvSpec("Toy-v0", make)
    )
    with pytest.raises(MissingExtraError, match=r"penstock\[sim\]"):
        make_environment("Toy-v0")
