"""Small data and runs of Pendulum-v1, for tests of learning beside a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from learners.rollout import Collection, Exploration, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store

ENVIRONMENT = "Pendulum-v1"


class Idle:
    """Does nothing on average."""

    def act(self, observations: Any) -> np.ndarray:
        return np.zeros((len(observations), 1))


def demonstrations(place: Path, count: int) -> Store:
    """A store of random play, on a branch of its own."""
    plan = Collection(ENVIRONMENT, episodes=count, exploration=Exploration("gaussian", 1.5))
    store = open_store(place, create=True)
    facts = Facts(namespace="demo", kind="demonstration")
    store.append(collect(Idle(), plan, facts), "random play", branch="demos")
    return store


def offline_run(
    store: Store, out: Path, steps: int = 40, algo: str = "iql", **settings: Any
) -> Path:
    """A run that hardly learned anything."""
    config = TrainConfig(
        algo=algo,
        data=(f"{store.url}@demos",),
        out=str(out),
        steps=steps,
        batch_size=32,
        settings={"hidden": (32, 32), **settings},
    )
    train(config)
    return out
