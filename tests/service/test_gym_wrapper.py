"""Episodes of a real environment, through a service, as they happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.flight import data_port
from tests.service.ports import service_in

gym = pytest.importorskip("gymnasium")


def test_episodes_of_an_environment(tmp_path: Path) -> None:
    from pipeline.service.gym_wrapper import PushEpisodes

    versions = iter("123456")
    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="cartpole") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        env = PushEpisodes(
            gym.make("CartPole-v1", max_episode_steps=30),
            client,
            policy="random",
            policy_version=lambda: next(versions),
        )
        seen: list[list[np.ndarray]] = []
        for seed in range(3):
            observation, _ = env.reset(seed=seed)
            env.action_space.seed(seed)
            seen.append([observation])
            is_over = False
            while not is_over:
                observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
                seen[-1].append(observation)
                is_over = terminated or truncated
        env.reset(seed=3)
        env.step(0)
        env.close()
        client.flush()
        found = [one.episode for one in client.tail()]
    assert [one.seed for one in found] == [0, 1, 2, 3]
    assert {one.task for one in found} == {"CartPole-v1"}
    assert {(one.kind, one.policy) for one in found} == {("rollout", "random")}
    assert len({one.policy_version for one in found}) == 4
    for one, observations in zip(found[:3], seen, strict=True):
        assert (one.observations["observations"] == np.stack(observations)).all()
        assert one.length == len(observations) - 1
        assert one.is_terminated or one.is_truncated
        assert one.episode_return == one.length
    assert (found[3].length, found[3].is_truncated) == (1, True)


def test_nested_spaces(tmp_path: Path) -> None:
    from pipeline.service.gym_wrapper import PushEpisodes

    class Nested(gym.Env):  # type: ignore[misc,name-defined,type-arg]
        observation_space = gym.spaces.Dict(
            {"at": gym.spaces.Box(-1, 1, (2,)), "held": gym.spaces.Discrete(3)}
        )
        action_space = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (1,))))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            self.steps = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            self.steps += 1
            is_last = self.steps == 5
            return self.observation_space.sample(), 0.5, is_last, False, {"is_success": is_last}

    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="nested") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        env = PushEpisodes(Nested(), client, task="nested")
        env.reset(seed=1)
        for _ in range(5):
            env.step(env.action_space.sample())
        assert env.pushed is not None
        env.pushed.result(30)
        (found,) = [one.episode for one in client.tail()]
    assert set(found.observations) == {"observations/at", "observations/held"}
    assert set(found.flat_actions) == {"actions/0", "actions/1"}
    assert found.success is True
    assert len(found.observations["observations/at"]) == 6


def test_an_environment_that_uses_its_arrays_again(tmp_path: Path) -> None:
    """It returns the same array at every step, and clips the action that it is given."""
    from pipeline.service.gym_wrapper import PushEpisodes

    class Reusing(gym.Env):  # type: ignore[misc,name-defined,type-arg]
        observation_space = gym.spaces.Dict(
            {"at": gym.spaces.Box(0, 9, (2,)), "seen": gym.spaces.Box(0, 9, (1,))}
        )
        action_space = gym.spaces.Box(-9, 9, (1,))

        def __init__(self) -> None:
            self.told = {"at": np.zeros(2, np.float32), "seen": np.zeros(1, np.float32)}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.told["at"][:], self.told["seen"][:] = 0, 0
            return self.told, {}

        def step(self, action):
            np.clip(action, -1, 1, out=action)
            self.told["at"] += 1
            self.told["seen"] += 2
            return self.told, 0.0, bool(self.told["at"][0] == 4), False, {}

    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="reusing") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        env = PushEpisodes(Reusing(), client, task="reusing")
        action = np.zeros(1, np.float32)
        for _ in range(2):
            env.reset()
            for step in range(4):
                action[:] = 2 + step
                env.step(action)
        assert env.pushed is not None
        env.pushed.result(30)
        found = [one.episode for one in client.tail()]
    assert len(found) == 2
    for one in found:
        assert one.observations["observations/at"][:, 0].tolist() == [0, 1, 2, 3, 4]
        assert one.observations["observations/seen"][:, 0].tolist() == [0, 2, 4, 6, 8]
        assert one.flat_actions["actions"][:, 0].tolist() == [2, 3, 4, 5]


def test_resets_one_after_another(tmp_path: Path) -> None:
    """An episode begins with the newest of them, and one without a step is none."""
    from pipeline.service.gym_wrapper import PushEpisodes

    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="cartpole") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        env = PushEpisodes(gym.make("CartPole-v1"), client)
        env.reset(seed=1)
        env.reset(seed=2)
        first, _ = env.reset(seed=3)
        for _ in range(3):
            env.step(0)
        env.reset(seed=4)
        env.close()
        assert env.pushed is not None
        env.pushed.result(30)
        (found,) = [one.episode for one in client.tail()]
    assert (found.length, found.seed) == (3, 3)
    assert np.array_equal(found.observations["observations"][0], first)
