"""Makes OGBench data by its published procedure, with the package's own oracles.

`play` (cube, scene, puzzle): plans with correlated noise (0.1, smoothing 0.5), a new target
whenever one is done, 1,001 rows a trajectory. `navigate` (pointmaze): towards the oracle's subgoal
with noise of 0.5, a new goal whenever one is reached. Rewards and masks of a single-task
environment are OGBench's own relabelling, of the state in the same row.

Every trajectory has its own seed, so their numbers do not depend on how many processes share them;
OGBench's own files come from one seed for all.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle
from ogbench.relabel_utils import relabel_dataset

from benchmarks.simulators.trajectories import Rows, arguments, make_all, seed_everything, write

NOISE, SMOOTHING, MAZE_NOISE = 0.1, 0.5, 0.5
ORACLES = {
    "cube": {"cube": CubePlanOracle},
    "scene": {
        "cube": CubePlanOracle,
        "button": ButtonPlanOracle,
        "drawer": DrawerPlanOracle,
        "window": WindowPlanOracle,
    },
    "puzzle": {"button": ButtonPlanOracle},
}
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "scene": (0.5, 0.5)}
"""Range of the chance that a cube's target is on another cube, by environment."""


@functools.cache
def _data_env(name: str, length: int) -> Any:
    """The environment that data are made in, and its oracles."""
    settings: dict[str, Any] = {"terminate_at_goal": False, "max_episode_steps": length}
    if name.startswith("pointmaze"):
        return gym.make(name, **settings), {}
    env = gym.make(name, mode="data_collection", **settings)
    noise = {"env": env, "noise": NOISE, "noise_smoothing": SMOOTHING}
    if name.startswith("puzzle"):
        noise["gripper_always_closed"] = True
    kinds = next(kinds for start, kinds in ORACLES.items() if name.startswith(start))
    return env, {task: kind(**noise) for task, kind in kinds.items()}


def play(name: str, length: int, seed: int, number: int) -> Rows:
    """One trajectory of a manipulation environment; again until it is healthy."""
    env, oracles = _data_env(name, length)
    low, high = next((span for part, span in STACKING.items() if part in name), (0.5, 0.5))
    for attempt in range(100):
        first = seed + 1000 * number + attempt
        seed_everything(first)
        rows = _played(env, oracles, np.random.default_rng(first).uniform(low, high), first)
        if not name.startswith("scene") or _is_healthy(rows["qpos"]):
            return rows
    raise RuntimeError(f"No healthy trajectory among 100 of number {number}.")


def _played(env: Any, oracles: dict[str, Any], p_stack: float, seed: int) -> Rows:
    seen, info = env.reset(seed=seed)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(seen, info)
    rows: dict[str, list[Any]] = {}
    is_over = False
    while not is_over:
        action = np.clip(np.array(oracle.select_action(seen, info)), -1, 1)
        now = seen
        seen, _, terminated, truncated, info = env.step(action)
        is_over = terminated or truncated
        if oracle.done:
            at, said = env.unwrapped.set_new_target(p_stack=p_stack)
            oracle = oracles[said["privileged/target_task"]]
            oracle.reset(at, said)
        _add(rows, now, action, info)
    return _arrays(rows)


def _is_healthy(qpos: np.ndarray) -> bool:
    """False if the cube went where goals of the scene cannot be told from their pictures."""
    y, z = qpos[:, 15], qpos[:, 16]
    is_far_right = y >= 0.29
    is_far_left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (is_far_right | is_far_left).any()


def navigate(name: str, length: int, seed: int, number: int) -> Rows:
    """One trajectory of a maze, from goal to goal."""
    env, _ = _data_env(name, length)
    generator = np.random.default_rng((seed, number))
    seed_everything(seed + number)
    cells, corners = _cells(env.unwrapped.maze_map)
    start = cells[generator.integers(len(cells))]
    goal = corners[generator.integers(len(corners))]
    options = {"task_info": {"init_ij": start, "goal_ij": goal}}
    seen, _ = env.reset(seed=seed + number, options=options)
    rows: dict[str, list[Any]] = {}
    is_over = False
    while not is_over:
        at = env.unwrapped.get_xy()
        subgoal, _ = env.unwrapped.get_oracle_subgoal(at, env.unwrapped.cur_goal_xy)
        towards = (subgoal - at) / (np.linalg.norm(subgoal - at) + 1e-6)
        action = np.clip(towards + generator.normal(0, MAZE_NOISE, 2), -1, 1)
        now = seen
        seen, _, terminated, truncated, info = env.step(action)
        is_over = terminated or truncated
        if info["success"]:
            env.unwrapped.set_goal(corners[generator.integers(len(corners))])
        _add(rows, now, action, info)
    return _arrays(rows)


def _cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the free cells of a maze, and those of them that are no plain corridor."""
    free = [(int(i), int(j)) for i, j in zip(*np.nonzero(maze == 0), strict=True)]

    def is_corridor(i: int, j: int) -> bool:
        up, down, left, right = (
            maze[i - 1, j] == 0,
            maze[i + 1, j] == 0,
            maze[i, j - 1] == 0,
            maze[i, j + 1] == 0,
        )
        return (up and down and not left and not right) or (left and right and not up and not down)

    return free, [cell for cell in free if not is_corridor(*cell)]


def _add(rows: dict[str, list[Any]], seen: Any, action: Any, info: dict[str, Any]) -> None:
    found = {"observations": seen, "actions": action}
    found |= {name: info[f"prev_{name}"] for name in ("qpos", "qvel")}
    if "prev_button_states" in info:
        found["button_states"] = info["prev_button_states"]
    for name, value in found.items():
        rows.setdefault(name, []).append(np.array(value))


def _arrays(rows: dict[str, list[Any]]) -> Rows:
    return {
        name: np.array(values, np.int64 if name == "button_states" else np.float32)
        for name, values in rows.items()
    }


def main() -> None:
    """Makes a file for a single-task environment (`cube-single-singletask-task2-v0`)."""
    given = arguments(__doc__ or "", episodes=1000, length=1001, seed=0, processes=1)
    warnings.simplefilter("ignore")
    base = given.world.split("-singletask")[0] + "-v0"
    make = navigate if base.startswith("pointmaze") else play
    work = functools.partial(make, base, given.length, given.seed)
    made = make_all(work, given.episodes, given.processes)
    flat = {name: np.concatenate([one[name] for one in made]) for name in made[0]}
    relabel_dataset(given.world, gym.make(given.world), flat)
    write(given.out, made, {name: flat[name] for name in ("rewards", "masks")})


if __name__ == "__main__":
    main()
