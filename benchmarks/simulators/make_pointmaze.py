"""Makes D4RL-like maze data: waypoints on the shortest way, PD control, noise, goal after goal.

One long walk per trajectory; whenever a goal is reached the next one is drawn. The controller is
D4RL's: action = 10 (waypoint - place) - speed, with Gaussian noise of 0.5, clipped. Rewards and
ends are those of one fixed goal of `worlds.OneGoal`, put on afterwards: -1 a step, 0 where the step
ends within reach of it.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from typing import Any

import numpy as np

from benchmarks.simulators.trajectories import Rows, arguments, make_all, write
from benchmarks.simulators.worlds import CELLS, REACHED, make_maze

GAIN, DAMPING, NOISE = 10.0, -1.0, 0.5
Cell = tuple[int, int]


@functools.cache
def _maze(which: str, length: int) -> Any:
    settings = {"continuing_task": True, "reset_target": True, "max_episode_steps": length}
    return make_maze(which, **settings)


def distances(maze: list[list[int]], goal: Cell) -> dict[Cell, int]:
    """Returns how many cells each free cell is from a goal."""
    found, waiting = {goal: 0}, deque([goal])
    while waiting:
        i, j = waiting.popleft()
        for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if maze[cell[0]][cell[1]] != 1 and cell not in found:
                found[cell] = found[(i, j)] + 1
                waiting.append(cell)
    return found


def waypoint(env: Any, place: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns where to go next: the next cell's middle, or the goal itself in its own cell."""
    maze = env.unwrapped.maze
    i, j = (int(x) for x in maze.cell_xy_to_rowcol(place))
    k, m = (int(x) for x in maze.cell_xy_to_rowcol(goal))
    if (i, j) == (k, m):
        return goal
    far = distances(maze.maze_map, (k, m))
    near = [cell for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if cell in far]
    best = min(near, key=lambda cell: far[cell])
    middle: np.ndarray = maze.cell_rowcol_to_xy(np.array(best))
    return middle


def walk(which: str, length: int, seed: int, number: int) -> Rows:
    """One trajectory of so many rows."""
    env = _maze(which, length)
    generator = np.random.default_rng((seed, number))
    seen, _ = env.reset(seed=seed + number)
    rows: dict[str, list[np.ndarray]] = {"observations": [], "actions": []}
    for _ in range(length):
        now = seen["observation"]
        towards = waypoint(env, now[:2], seen["desired_goal"]) - now[:2]
        action = GAIN * towards + DAMPING * now[2:] + generator.normal(0, NOISE, 2)
        rows["observations"].append(now.copy())
        rows["actions"].append(np.clip(action, -1, 1))
        seen, *_ = env.step(rows["actions"][-1].astype(np.float32))
        seen = {**seen, "desired_goal": env.unwrapped.goal.copy()}  # not that of the step before
    return {name: np.array(values, np.float32) for name, values in rows.items()}


def main() -> None:
    """Makes a file for `umaze` or `medium`."""
    given = arguments(__doc__ or "", episodes=1000, length=1001, seed=0, processes=1)
    warnings.simplefilter("ignore")
    work = functools.partial(walk, given.world, given.length, given.seed)
    made = make_all(work, given.episodes, given.processes)
    maze = _maze(given.world, given.length).unwrapped.maze
    goal = maze.cell_rowcol_to_xy(np.array(CELLS[given.world][1]))
    for one in made:
        following = np.append(one["observations"][1:, :2], [[np.inf, np.inf]], axis=0)
        reached = np.linalg.norm(following - goal, axis=1) <= REACHED
        one["rewards"] = reached.astype(np.float32) - 1.0
        one["masks"] = 1.0 - reached.astype(np.float32)
    write(given.out, made)


if __name__ == "__main__":
    main()
