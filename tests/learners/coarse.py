"""CQN and ARSQ side by side on data that are mostly poor: five seeds of each, trained as one.

`python -m tests.learners.coarse modes pendulum hopper=STORE` measures. In `modes` one of three ways
to act is good, and rare; nothing is called a demonstration. In the others the best episodes of the
data are the demonstrations, and half of each batch, the other half being drawn from all of it: of
swings of a pendulum made here, or of episodes of Hopper-v5 in a store. Settings that both learners
have are the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from learners.base import Learner, make_learner
from learners.data import Sampling, fit, open_stream, pin
from learners.evaluate import evaluate
from learners.rollout import Collection, Exploration, Facts, collect
from learners.scores import Spread, spread, stratified_interval
from pipeline.store.store import Store, open_store
from tests.learners import tasks

ALGORITHMS = ("cqn", "arsq")


@dataclass(frozen=True)
class Task:
    """Where policies are judged, and what both learners are given."""

    environment: str
    steps: int
    discount: float
    common: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of one of them."""
    batch_size: int = 128


MODES = "Modes-v0"


class Modes(gym.Env[np.ndarray, np.ndarray]):
    """Ten steps, in each of which one of three places of a turned square is to be hit.

    One earns 1, one 0.1 and one costs 1; elsewhere it is nothing. The places share sides: to know
    one coordinate of a place says little of what it earns.
    """

    observation_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    action_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    places: ClassVar[Any] = np.array([[0.6, 0.6], [0.6, -0.6], [-0.6, 0.6]])
    worth: ClassVar[Any] = np.array([1.0, 0.1, -1.0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begins an episode."""
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: np.ndarray) -> Any:
        """Goes on to a sign that nothing done has any influence on."""
        away = np.square(np.asarray(action) - self.places * self.sign).sum(axis=1)
        earned = float(self.worth @ np.exp(-away / 0.18))
        return self._next(), earned, False, False, {}

    def _next(self) -> np.ndarray:
        self.sign = self.np_random.choice([-1.0, 1.0], 2)
        return self.sign.copy()


class Often:
    """Aims at the three places with probabilities of 1/10, 9/20 and 9/20."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def act(self, observations: Any) -> np.ndarray:
        """Returns (B, 2)."""
        signs = np.asarray(observations)
        which = self.random.choice(3, len(signs), p=[0.1, 0.45, 0.45])
        return np.asarray(Modes.places[which] * signs)


def modes(place: Path) -> tuple[str, ...]:
    """Returns the reference to 200 episodes that mostly miss what is good."""
    plan = Collection(MODES, episodes=200, exploration=Exploration("gaussian", 0.15))
    store = open_store(place, create=True)
    store.append(collect(Often(), plan, Facts(namespace="often", kind="rollout")))
    return (store.url,)


_FAST: dict[str, Any] = {"standardise": True, "tau": 0.02}
# Discounted sums of scaled rewards lie between -2 and 2, where CQN has its values.
TASKS = {
    "modes": Task(
        MODES,
        1_000,
        0.5,
        {
            **{**_FAST, "standardise": False, "demonstration_weight": 0.0},
            **{"levels": 2, "bins": 5, "hidden": (64, 64)},
        },
        {
            "cqn": {"critic_rate": 1e-3, "critic_weight": 1.0},
            "arsq": {"advantage_rate": 1e-3, "value_rate": 1e-3, "activation": "relu"},
        },
    ),
    "pendulum": Task(
        "Pendulum-v1",
        3_000,
        0.98,
        {**_FAST, "reward_scale": 0.005, "levels": 2, "bins": 5, "hidden": (64, 64)},
        {
            "cqn": {"critic_rate": 1e-3},
            "arsq": {"advantage_rate": 1e-3, "value_rate": 1e-3, "activation": "relu"},
        },
    ),
    "hopper": Task(
        "Hopper-v5",
        6_000,
        0.99,
        {**_FAST, "reward_scale": 0.005, "levels": 2, "bins": 5, "hidden": (128, 128)},
        {
            "cqn": {"critic_rate": 3e-4},
            "arsq": {"advantage_rate": 3e-4, "value_rate": 3e-4, "activation": "relu"},
        },
    ),
}


@dataclass(frozen=True)
class Acting:
    """One of several agents, as an actor."""

    learner: Learner
    agent: int

    def act(self, observations: Any) -> torch.Tensor:
        """Returns its deterministic actions."""
        return self.learner.act(observations, self.agent)


def learned(
    algo: str, task: Task, references: Sequence[str], seeds: Sequence[int], **changes: Any
) -> Learner:
    """Returns agents that learned side by side, the first source being the demonstrations.

    Args:
        algo: name.
        task: what it is given.
        references: `STORE@REF` with weights.
        seeds: one per agent.
        changes: settings that differ, and `steps`.
    """
    steps = changes.pop("steps", task.steps)
    pinned = pin(references)
    settings = {**task.common, **task.own.get(algo, {}), "demonstrations": 1, **changes}
    made = make_learner(algo, settings, fit(pinned, task.common["standardise"]), tuple(seeds))
    needs = made.needs(made.settings)
    rows = task.batch_size * len(seeds)
    sampling = Sampling(rows, seeds[0], task.discount, "cpu", needs=needs)
    for _, batch in zip(range(steps), open_stream(pinned, sampling), strict=False):
        made.update(batch)
    return made


def returns(made: Learner, environment: str, episodes: int) -> np.ndarray:
    """Returns what each agent earns in each of the same episodes, (K, N)."""
    agents = [Acting(made, agent) for agent in range(made.agents.count)]
    return np.array([evaluate(agent, environment, episodes).returns for agent in agents])


@dataclass(frozen=True)
class Compared:
    """Last scores of both, and how much better ARSQ is, in pairs of seeds."""

    scores: Mapping[str, Spread]
    difference: float
    interval: tuple[float, float]
    """95 %."""


def compare(
    task: Task, references: Sequence[str], seeds: Sequence[int], episodes: int, **changes: Any
) -> Compared:
    """Trains and judges both on the same rows and episodes; arguments as for `learned`."""
    found = {
        algo: returns(learned(algo, task, references, seeds, **changes), task.environment, episodes)
        for algo in ALGORITHMS
    }
    apart = found["arsq"] - found["cqn"]
    scores = {algo: spread(values) for algo, values in found.items()}
    return Compared(scores, float(apart.mean()), stratified_interval(apart))


def with_best(store: Store, branch: str, share: float) -> tuple[str, str]:
    """Names the best episodes of a branch `best`; returns both references, half of a batch each."""
    version = store.version(branch)
    earned = version.episodes(columns=["episode_return"])["episode_return"].to_numpy()
    least = float(np.quantile(earned, 1 - share))
    version.where(f"episode_return >= {least!r}").commit("best")
    return f"{store.url}@best=0.5", f"{store.url}@{branch}=0.5"


def pendulum(place: Path) -> tuple[str, str]:
    """Returns references to the best of play that is good for a quarter, and to all of it."""
    url = tasks.make_data(place).url
    return f"{url}@best=0.5", f"{url}@mixed=0.5"


def main() -> None:
    """Measures the tasks named."""
    torch.set_num_threads(1)
    gym.register(MODES, entry_point=Modes, max_episode_steps=10)
    with tempfile.TemporaryDirectory() as folder:
        for name, _, where in (one.partition("=") for one in sys.argv[1:] or ["pendulum"]):
            store = Path(folder) / name
            made = {"modes": modes, "pendulum": pendulum}
            references = with_best(open_store(where), "main", 0.1) if where else made[name](store)
            before = time.process_time()
            found = compare(TASKS[name], references, range(5), 10)
            lines = [(algo, one.mean, one.interval) for algo, one in found.scores.items()]
            for what, mean, (low, high) in [
                *lines,
                ("arsq - cqn", found.difference, found.interval),
            ]:
                sys.stdout.write(f"{name} {what}: {mean:.1f} ({low:.1f} to {high:.1f})\n")
            sys.stdout.write(f"{name}: {time.process_time() - before:.0f} CPU s\n")


if __name__ == "__main__":
    main()
