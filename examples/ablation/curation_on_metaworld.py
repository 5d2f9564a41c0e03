"""Does curation without labels help? Cloned policies on Meta-World, judged in simulation.

The demonstrations are of scripted controllers with noise on recorded actions, unseen disturbances,
slow and hesitant ones among them. Whether an episode succeeded and what Penstock's metrics say of
it is all that curation sees here; the noise is never looked at. For each task the same learner is
trained on all episodes, on what `penstock suggest` proposes to keep, on the half with the lowest
`action_divergence`, and on as many at random as each of the two keeps.

Needs an environment of its own, since Meta-World pins an older MuJoCo:

    pip install 'penstock[learners,plot]' 'mujoco==3.3.0' 'metaworld==3.1.1' packaging
    python examples/ablation/curation_on_metaworld.py demonstrations.hdf5 --out ./curation

The file is in robomimic's layout, with a `task` for each episode and 39 numbers `flat` for each
observation.
"""

from __future__ import annotations

import argparse
import functools
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

from learners.ablate import AblateConfig, ablate
from learners.ablation_report import markdown
from learners.comparison import Comparison, compare
from learners.plots import plot_comparison
from pipeline.cli.main import main as penstock
from pipeline.curation.suggest import suggest
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store

STEPS = 200
"""After which an episode is cut off, as the demonstrations were."""


class Manipulation(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A Meta-World task with the goal in sight, which ends at its first success.

    Observations stand under the name that they have in the file.

    Args:
        task: such as `push-v3`.
    """

    action_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    observation_space: ClassVar[Any] = gym.spaces.Dict(
        {"flat": gym.spaces.Box(-np.inf, np.inf, (39,), np.float64)}
    )

    def __init__(self, task: str) -> None:
        self._inner = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]()
        self._inner._freeze_rand_vec = False  # or every episode would have the first one's goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Places objects and goal by the seed."""
        if seed is not None:
            self._inner.seed(seed)
        seen, info = self._inner.reset()
        return {"flat": seen}, info

    def step(self, action: np.ndarray) -> Any:
        """Acts once; success ends the episode."""
        seen, reward, _, _, info = self._inner.step(np.asarray(action, np.float32))
        is_done = bool(info["success"])
        return {"flat": seen}, float(reward), is_done, False, {"success": is_done}


def versions(store: Store, main: Version, task: str, seed: int = 0) -> list[str]:
    """Commits what is compared of one task; returns the names, all episodes first."""
    proposed = suggest(main, "success").proposed
    mine = main.where(f"task == '{task}'").commit(f"{task}-all")
    filters = {"divergence": "action_divergence <= quantile(action_divergence, 0.5)"}
    if proposed is not None:
        filters = {"suggested": proposed.where, **filters}
    ids = np.array(mine.episodes(columns=["episode_id"])["episode_id"].to_pylist())
    names = [f"{task}-all"]
    for name, where in filters.items():
        kept = mine.where(where).commit(f"{task}-{name}")
        count = kept.episodes(columns=["episode_id"]).num_rows
        drawn = np.random.default_rng(seed).permutation(ids)[:count]
        listed = ", ".join(f"'{one}'" for one in sorted(drawn))
        mine.where(f"episode_id in ({listed})").commit(f"{task}-random-as-{name}")
        names += [f"{task}-{name}", f"{task}-random-as-{name}"]
    return [f"{store.url}@{name}" for name in names]


def compared(store: Store, main: Version, task: str, given: argparse.Namespace) -> Comparison:
    """Trains and judges on one task, and writes its report."""
    name = f"{task.partition('-v')[0]}-until-success-v3"
    make = functools.partial(Manipulation, task)
    gym.register(name, entry_point=make, max_episode_steps=STEPS, disable_env_checker=True)
    out = given.out / task
    config = AblateConfig(
        algo="bc",
        data=tuple(versions(store, main, task)),
        environment=name,
        out=str(out),
        seeds=given.seeds,
        steps=given.steps,
        episodes=given.episodes,
        settings={"hidden": (128, 128), "standardise": True},
    )
    found = ablate(config, lambda stage, done, total, _: told(task, stage, done, total))
    plot_comparison(found, out / "ablation.svg")
    (out / "ablation.md").write_text(markdown(config, found, "ablation.svg"))
    return found


def against_random(found: Comparison) -> list[str]:
    """Returns what each filter does beside as many episodes at random."""
    pairs = zip(found.arms[2::2], found.arms[1::2], strict=True)
    return [sentence for pair in pairs for sentence in compare(pair).sentences()]


def told(task: str, stage: str, done: int, total: int) -> None:
    """Says what is finished."""
    if done == total:
        sys.stderr.write(f"{task}: {stage}, {done} done\n")


def main() -> None:
    """Ingests, measures, curates, trains, judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["push-v3", "reach-v3", "drawer-open-v3"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # Meta-World's spaces are narrower than its observations
    place = given.out / "store"
    if not place.exists():
        for step in (["ingest", str(given.data), "--into", str(place)], ["measure", str(place)]):
            if penstock(step) != 0:
                sys.exit(1)
    store = open_store(place)
    main_version = store.version()
    for task in given.tasks:
        found = compared(store, main_version, task, given)
        for sentence in (*found.sentences(), *against_random(found)):
            sys.stdout.write(f"{task}: {sentence}\n")


if __name__ == "__main__":
    main()
