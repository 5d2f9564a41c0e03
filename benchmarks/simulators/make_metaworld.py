"""Makes Meta-World demonstrations by the package's scripted policies, with two kinds of noise.

Noise of the policy is in the recorded action; noise of the system is added after it is recorded, as
by a disturbance that nobody sees. An episode ends at its first success or after 200 steps.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from benchmarks.simulators.trajectories import Rows, arguments, make_all, write
from benchmarks.simulators.worlds import ManipulationTask


@functools.cache
def _task(name: str) -> ManipulationTask:
    return ManipulationTask(name)


def demonstrate(task: str, policy_noise: float, system_noise: float, seed: int, k: int) -> Rows:
    """One episode; one row more than steps."""
    warnings.simplefilter("ignore")
    env, policy = _task(task), ENV_POLICY_MAP[task]()
    generator = np.random.default_rng((seed, k))
    seen, _ = env.reset(seed=seed + k)
    rows: dict[str, list[Any]] = {"observations": [], "actions": [], "rewards": [], "success": []}
    is_over = False
    while not is_over:
        meant = np.clip(policy.get_action(seen), -1, 1)
        recorded = np.clip(meant + generator.normal(0, policy_noise, 4), -1, 1)
        executed = np.clip(recorded + generator.normal(0, system_noise, 4), -1, 1)
        rows["observations"].append(seen)
        rows["actions"].append(recorded)
        seen, reward, terminated, truncated, _ = env.step(executed)
        rows["rewards"].append(reward)
        rows["success"].append(float(terminated))
        is_over = terminated or truncated
    rows["observations"].append(seen)
    for name in ("actions", "rewards", "success"):
        rows[name].append(np.zeros_like(rows[name][-1]))
    return {name: np.array(values, np.float32) for name, values in rows.items()}


def main() -> None:
    """Makes a file for one task and one pair of noise levels."""
    given = arguments(
        __doc__ or "",
        episodes=50,
        length=200,
        seed=0,
        processes=1,
        policy_noise=0.0,
        system_noise=0.0,
    )
    work = functools.partial(
        demonstrate, given.world, given.policy_noise, given.system_noise, given.seed
    )
    write(given.out, make_all(work, given.episodes, given.processes))


if __name__ == "__main__":
    main()
