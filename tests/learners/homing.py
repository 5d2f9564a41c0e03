"""A small world for learners: a point on a line that should go home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from learners.rollout import Collection, Exploration, Facts, collect
from schemas.episode import Episode

ENVIRONMENT = "Homing-v0"


class Homing(gym.Env[np.ndarray, np.ndarray]):
    """A point on a line: moves by the action, is rewarded for being at home, ends beyond 2.

    Being there is success.
    """

    observation_space: ClassVar[Any] = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.5, 1.5, 1)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        self.position = self.position + 0.5 * action
        is_gone = bool(abs(self.position[0]) > 2)
        return (
            self.position.copy(),
            1.0 - abs(float(self.position[0])),
            is_gone,
            False,
            self._said(),
        )

    def _said(self) -> dict[str, Any]:
        return {"success": bool(abs(self.position[0]) < 0.1)}


class Restless:
    """Does nothing on average."""

    def act(self, observations: Any) -> np.ndarray:
        return np.zeros((len(observations), 1))


def demonstrations(count: int, first: int = 0) -> Iterator[Episode]:
    """Random walks; numbers make the seeds."""
    plan = Collection(
        ENVIRONMENT, episodes=count, first=first, exploration=Exploration("gaussian", 0.5)
    )
    return collect(Restless(), plan, Facts(namespace="demo", kind="demonstration"))
