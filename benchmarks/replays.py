"""Replays of our own: all that a soft actor-critic did until it was stopped, as D4RL's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Scale
from learners.checkpoint import last_checkpoint
from learners.environments import action_box, make_environment
from learners.finetune import FinetuneConfig, finetune
from learners.rollout import Collection, Exploration, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import open_store, open_version

RANDOM_STEPS = 2_000


class Idle:
    """Does nothing on average."""

    def __init__(self, dims: int) -> None:
        self._dims = dims

    def act(self, observations: Any) -> np.ndarray:
        """Returns zeros, (B, A)."""
        return np.zeros((len(observations), self._dims))


def make_replay(world: str, scale: Scale, folder: Path, device: str) -> str:
    """Learns from nothing, and returns what was played meanwhile as `STORE@VERSION`.

    RLPD with one update of two critics without layer norm, and no old data in its batches, is SAC.

    Args:
        world: a name that Gymnasium knows.
        scale: its `episodes` are environment steps here.
        folder: where the store and the run go.
        device: where networks live.
    """
    store = open_store(folder / "store", create=True)
    environment = make_environment(world)
    dims = int(np.prod(action_box(environment).shape))
    environment.close()
    plan = Collection(world, steps=RANDOM_STEPS, exploration=Exploration("gaussian", 1.0))
    played = collect(Idle(dims), plan, Facts(namespace="random", policy="random"))
    random = store.append(played, "random play", branch="random")
    sac = {"updates": 1, "members": 2, "minimum_of": 2, "layer_norm": False}
    rates = {"critic_rate": 1e-3, "policy_rate": 1e-3}
    run, online = folder / "runs" / "sac", folder / "runs" / "sac-online"
    train(
        TrainConfig(
            algo="rlpd",
            data=(f"{store.url}@{random.id}",),
            out=str(run),
            steps=1,
            settings={
                "hidden": scale.hidden,
                "target_entropy": -float(dims),
                "standardise": False,
                **sac,
                **rates,
            },
            device=device,
            resume=last_checkpoint(run) is not None,
        )
    )
    finetune(
        FinetuneConfig(
            run=str(run),
            environment=world,
            into=store.url,
            out=str(online),
            branch="replay",
            env_steps=scale.episodes,
            round_steps=1_000,
            offline_fraction=0.0,
            evaluate_episodes=1,
            device=device,
            resume=last_checkpoint(online) is not None,
        )
    )
    return f"{store.url}@{store.version('replay').id}"


def return_scale(reference: str) -> float:
    """Returns 1000 / (largest - smallest return) of a version, as IQL scales locomotion rewards."""
    table = open_version(reference).episodes(columns=["episode_return"])
    returns = table["episode_return"].to_numpy()
    return float(1000.0 / (returns.max() - returns.min()))
