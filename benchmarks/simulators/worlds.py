"""The worlds learners are judged in, by name `PACKAGE/NAME`; each is imported when it is made."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.simulators.trajectories import seed_everything

UMAZE_START, UMAZE_GOAL = (1, 1), (3, 1)
"""The two ends of the U."""
MEDIUM_START, MEDIUM_GOAL = (1, 1), (6, 6)
REACHED = 0.45
"""Distance at which gymnasium-robotics counts a goal as reached."""
METAWORLD_STEPS = 200


def make_world(name: str) -> gym.Env[Any, Any]:
    """Makes a world: observations of one vector, `info["success"]`, an end at success.

    Args:
        name: `ogbench/<environment>`, `pointmaze/umaze`, `pointmaze/medium`,
            `metaworld/<task>`, or `gymnasium/<environment>` for what Gymnasium itself has.
    """
    package, _, inner = name.partition("/")
    if package == "ogbench":
        import ogbench  # noqa: F401, PLC0415 - registers its environments

        return gym.make(inner)
    if package == "gymnasium":
        return gym.make(inner)
    if package == "pointmaze":
        return OneGoal(make_maze(inner, continuing_task=False), *CELLS[inner])
    if package == "metaworld":
        return ManipulationTask(inner)
    raise ValueError(f"Expected ogbench/, pointmaze/, metaworld/ or gymnasium/, came {name!r}.")


CELLS = {"umaze": (UMAZE_START, UMAZE_GOAL), "medium": (MEDIUM_START, MEDIUM_GOAL)}
_MAZES = {"umaze": "PointMaze_UMaze-v3", "medium": "PointMaze_Medium-v3"}


def make_maze(which: str, **settings: Any) -> gym.Env[Any, Any]:
    """Makes gymnasium-robotics' maze."""
    import gymnasium_robotics  # noqa: PLC0415 - only where it is installed

    gym.register_envs(gymnasium_robotics)
    return gym.make(_MAZES[which], **settings)


class OneGoal(gym.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc]
    """A maze with one goal, as antmaze has: -1 a step until it is reached, which ends an episode.

    Where the goal is, learners have to find out: they see place and speed only.
    """

    def __init__(
        self, env: gym.Env[Any, Any], start: tuple[int, int], goal: tuple[int, int]
    ) -> None:
        super().__init__(env)
        self._cells = {"reset_cell": np.array(start), "goal_cell": np.array(goal)}
        self.goal = env.unwrapped.maze.cell_rowcol_to_xy(np.array(goal))
        self.observation_space = env.observation_space["observation"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        """Starts near the start cell; the goal has no noise."""
        seen, info = self.env.reset(seed=seed, options=dict(self._cells))
        self.env.unwrapped.goal = self.goal.copy()
        return seen["observation"], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Any]:
        """Acts once."""
        seen, _, terminated, truncated, info = self.env.step(action)
        return seen["observation"], -1.0 + float(terminated), terminated, truncated, info


class ManipulationTask(gym.Env[np.ndarray, np.ndarray]):  # type: ignore[misc]
    """A Meta-World task whose goal is drawn by the seed and seen; ends at its first success."""

    def __init__(self, task: str) -> None:
        from metaworld.env_dict import (  # noqa: PLC0415 - only where it is installed
            ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE,
        )

        self._env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        """Draws a goal and a place."""
        if seed is not None:
            seed_everything(seed)
            self._env.seed(seed)
        self._steps = 0
        seen, info = self._env.reset(seed=seed)
        return np.asarray(seen, np.float64), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
        """Acts once."""
        seen, reward, _, _, info = self._env.step(np.asarray(action))
        self._steps += 1
        success = bool(info["success"])
        is_late = self._steps >= METAWORLD_STEPS and not success
        return np.asarray(seen, np.float64), float(reward), success, is_late, {"success": success}
