"""How familiar an episode's states are, against a sample of the reference's, and its actions there.

`state_similarity` is the share of reference states (of other episodes) within a fixed radius of a
step's state, averaged over steps (Belkhale, Cui, Sadigh 2023); the radius is the median distance
to the 16th nearest. `coverage` is a state's surprise in nats, averaged over steps: its mean over
the reference's own steps is the entropy of its scaled states. More of either is not better by
itself.

The same neighbours tell `action_divergence_modes` (`modes.py`). Long episodes are asked at 64
evenly spaced steps.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pipeline.quality.action import MAX_FAULTY_SHARE, episode_means
from pipeline.quality.modes import mode_distances
from pipeline.quality.reference import Placed
from pipeline.quality.surroundings import nearest, readings

MODES = "action_divergence_modes"
NAMES = ("state_similarity", "coverage", MODES)
STEPS = 64
"""Steps of one episode that are asked at most."""


def score_similarity(placed: Placed, names: Collection[str] = NAMES) -> dict[str, np.ndarray]:
    """Returns the metrics that ask for neighbours, (E,) of a block's episodes, NaN for none.

    Args:
        placed: the block.
        names: which are wanted, of `NAMES`.
    """
    block, known = placed.block, placed.model.surroundings
    count = len(block.lengths)
    rows, episodes = spaced(block.lengths)
    kept = block.acting[rows]
    rows, episodes = rows[kept], episodes[kept]
    if known is None or not len(rows):
        return dict.fromkeys(NAMES, np.full(count, np.nan))
    points = placed.model.states.points(placed.predictors[rows])
    owners = block.fingerprints[episodes]
    near = nearest(known, points, owners)
    found: dict[str, np.ndarray] = {}
    if MODES in names:
        targets = placed.model.targets
        found[MODES] = mode_distances(
            known, near, targets.encode(block.targets[rows]), targets.dims
        )
    if "state_similarity" in names or "coverage" in names:
        found["state_similarity"], found["coverage"] = readings(known, points, owners, near)
    faulty = block.faulty_actions > MAX_FAULTY_SHARE * block.lengths
    return {
        name: np.where(faulty, np.nan, episode_means(values, episodes, count))
        for name, values in found.items()
    }


def spaced(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows of a block to ask, and the episode of each; at most `STEPS` of one."""
    starts = np.cumsum(lengths) - lengths
    rows = [
        start + np.unique(np.rint(np.linspace(0, length - 1, min(length, STEPS))).astype(np.int64))
        for start, length in zip(starts, lengths, strict=True)
    ]
    episodes = np.repeat(np.arange(len(lengths)), [len(some) for some in rows])
    return np.concatenate(rows) if rows else np.zeros(0, np.int64), episodes
