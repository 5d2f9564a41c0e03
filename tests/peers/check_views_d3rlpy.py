"""Trains d3rlpy's IQL on a version seen as its replay buffer.

    PYTHONPATH=. python tests/peers/check_views_d3rlpy.py

Runs in an environment with `d3rlpy.txt` and `views.txt`. Ends with 1 where episodes differ from the
store's, or the policy that is learned is not that of the data.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import d3rlpy
import numpy as np
import torch

from pipeline.store.reader import Version
from tests.peers import views_store

STEPS = 600


def check(version: Version) -> None:
    """Holds every episode against the store, and trains."""
    dataset = version.as_d3rlpy()
    expect(len(dataset.episodes) == len(version), "as many episodes")
    transitions = 0
    for theirs, ours in zip(dataset.episodes, version.iter_episodes(), strict=True):
        states = np.asarray(ours.observations["observations"])[: ours.length]
        expect(np.array_equal(theirs.observations, states), "observations")
        expect(np.array_equal(theirs.actions, np.asarray(ours.actions)), "actions")
        expect(np.array_equal(theirs.rewards, np.asarray(ours.rewards)[:, None]), "rewards")
        expect(theirs.terminated == ours.is_terminated, "terminated")
        transitions += ours.length - (not ours.is_terminated)
    expect(dataset.transition_count == transitions, f"{transitions} transitions")
    iql = d3rlpy.algos.IQLConfig(batch_size=64).create(device="cpu:0")
    iql.fit(
        dataset,
        n_steps=STEPS,
        n_steps_per_epoch=STEPS,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    rows = np.concatenate([episode.observations for episode in dataset.episodes])
    wanted = np.concatenate([episode.actions for episode in dataset.episodes])
    error = float(np.mean((iql.predict(rows) - wanted) ** 2))
    print(f"mean square error of actions {error:.4f}, of none {np.mean(wanted**2):.4f}")  # noqa: T201
    expect(error < 0.5 * float(np.mean(wanted**2)), "a policy like the data's")


def expect(is_so: bool, what: str) -> None:
    if not is_so:
        sys.exit(f"expected {what}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    with tempfile.TemporaryDirectory() as place:
        check(views_store.version(Path(place, "store")))
