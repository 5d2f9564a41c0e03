"""A small task that every learner is to solve: a pendulum swung up, from data made here.

A scripted controller swings the pendulum up and holds it; it scores about -145, idle play about
-1,190. "steady" data are its episodes with noise on the actions. "mixed" data are a few of those
among three times as many of aimless play, so that whoever copies all of it fails. "best" is the
quarter of those that earned the most, for learners that are shown demonstrations beside other data.

`python -m tests.learners.tasks` measures every learner on five seeds and prints what
`tests.learners.test_tasks` asks for beside it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from learners.finetune import FinetuneConfig, finetune
from learners.rollout import Collection, Exploration, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.episode import Episode

ENVIRONMENT = "Pendulum-v1"
SEEDS = (0, 1, 2, 3, 4)
DISCOUNT = 0.98

# Rates and targets for a few thousand updates of small networks, rewards of about one.
_FAST: dict[str, Any] = {"hidden": (64, 64), "standardise": True}
_CRITIC: dict[str, Any] = {**_FAST, "critic_rate": 1e-3, "policy_rate": 1e-3, "tau": 0.02}
_SCALED: dict[str, Any] = {**_CRITIC, "reward_scale": 0.1}
# Sums of rewards between -2 and 0, which CQN's values cover.
_CHOSEN: dict[str, Any] = {
    **_FAST,
    **{"tau": 0.02, "reward_scale": 0.005, "levels": 2, "bins": 5, "demonstrations": 1},
}
_WHOLE: dict[str, Any] = {"reward_scale": 0.1, "action_low": -2.0, "action_high": 2.0}


@dataclass(frozen=True)
class Task:
    """What a learner is given, and the mean return of 10 episodes that it has to reach."""

    data: str
    """Branches with their weights, parted by commas."""
    at_least: float
    steps: int
    settings: Mapping[str, Any]
    batch_size: int = 128
    online: Mapping[str, Any] = field(default_factory=dict)
    """Settings of fine-tuning, for those that learn online."""


TASKS: dict[str, Task] = {
    "bc": Task("steady", -300, 2_000, {**_FAST, "learning_rate": 1e-3}),
    "iql": Task(
        "mixed",
        -300,
        8_000,
        {**_SCALED, "value_rate": 1e-3, "policy_rate": 3e-4, "tau": 0.01, "temperature": 10.0},
    ),
    "td3_bc": Task("mixed", -300, 4_000, {**_SCALED, "alpha": 20.0}),
    "rebrac": Task(
        "mixed", -300, 4_000, {**_SCALED, "policy_penalty": 0.03, "critic_penalty": 0.03}
    ),
    "cql": Task("mixed", -300, 3_000, {**_SCALED, "weight": 1.0, "samples": 4}),
    "cal_ql": Task(
        "mixed",
        -300,
        3_000,
        {**_SCALED, "weight": 1.0, "samples": 4, "lagrange": None, "max_target": False},
    ),
    "rlpd": Task(
        "mixed",
        -300,
        1,
        {**_CRITIC, "updates": 4, "members": 4, "reward_scale": 0.1},
        online={"env_steps": 4_000, "updates_per_step": 0.5, "warmup_steps": 400},
    ),
    "dt": Task(  # thirty episodes are too few to learn what each of 200 places means
        "steady",
        -450,
        2_000,
        {
            "target_return": -200.0,
            "context": 5,
            "longest": 1,
            "width": 32,
            "blocks": 2,
            "learning_rate": 1e-3,
            "warm_up": 100,
        },
        batch_size=64,
    ),
    "cqn": Task(
        "steady",
        -300,
        2_000,
        {**_FAST, **_WHOLE, "critic_rate": 1e-3, "value_low": -40.0, "value_high": 0.0},
    ),
    "arsq": Task(
        "mixed",
        -300,
        4_000,
        {
            **_FAST,
            **_WHOLE,
            "advantage_rate": 1e-3,
            "value_rate": 1e-3,
            "activation": "relu",
            "demonstration_weight": 0.1,
        },
    ),
}


class Swinging:
    """Swings the pendulum up by its energy, and holds it there."""

    def act(self, observations: Any) -> np.ndarray:
        cos, sin, speed = np.asarray(observations, np.float64).T
        lacking = 5.0 - (speed**2 / 6.0 + 5.0 * cos)
        swing = np.clip(2.0 * lacking, -2.0, 2.0) * np.sign(speed + 1e-9)
        hold = -10.0 * np.arctan2(sin, cos) - 2.5 * speed
        return np.where(cos > 0.9, hold, swing).clip(-2.0, 2.0)[:, None]


class Idle:
    """Does nothing on average."""

    def act(self, observations: Any) -> np.ndarray:
        return np.zeros((len(observations), 1))


def _played(actor: Any, count: int, noise: float, name: str) -> Iterator[Episode]:
    plan = Collection(ENVIRONMENT, episodes=count, exploration=Exploration("gaussian", noise))
    return collect(actor, plan, Facts(namespace=name, kind="demonstration"))


def make_data(place: Path) -> Store:
    """A store with the branches `steady`, `mixed` and `best`."""
    store = open_store(place, create=True)
    store.append(_played(Swinging(), 30, 1.0, "swinging"), branch="steady")
    store.append(_played(Swinging(), 15, 1.0, "swinging"), branch="mixed")
    store.append(_played(Idle(), 45, 1.5, "idle"), branch="mixed")
    mixed = store.version("mixed")
    earned = mixed.episodes(columns=["episode_return"])["episode_return"].to_numpy()
    mixed.where(f"episode_return >= {float(np.quantile(earned, 0.75))!r}").commit("best")
    return store


def solve(algo: str, store: Store, out: Path, seed: int, **changes: Any) -> float:
    """Trains one learner as its task says; returns the mean return of its last policy."""
    task = TASKS[algo]
    given: dict[str, Any] = {"steps": task.steps, "settings": task.settings, **changes}
    run = train(
        TrainConfig(
            algo=algo,
            data=tuple(f"{store.url}@{branch}" for branch in task.data.split(",")),
            out=str(out),
            batch_size=task.batch_size,
            seed=seed,
            discount=DISCOUNT,
            environment=None if task.online else ENVIRONMENT,
            **given,
        )
    )
    if task.online:
        run = finetune(
            FinetuneConfig(
                run=str(out),
                environment=ENVIRONMENT,
                into=store.url,
                branch=f"{algo}-{seed}",
                seed=seed,
                **task.online,
            )
        )
    assert run.evaluation is not None
    return run.evaluation.mean_return


def main() -> None:
    """Measures the learners named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        store = make_data(Path(folder) / "store")
        for algo in sys.argv[1:] or TASKS:
            before = time.process_time()
            found = [solve(algo, store, Path(folder) / f"{algo}-{seed}", seed) for seed in SEEDS]
            seconds = (time.process_time() - before) / len(SEEDS)
            sys.stdout.write(
                f"{algo:8} mean {np.mean(found):8.1f}  worst {min(found):8.1f}  "
                f"asked {TASKS[algo].at_least:8.1f}  {seconds:5.1f} CPU s a seed\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
