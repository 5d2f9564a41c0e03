"""How familiar an episode's states are, against a sample of the reference's.

`state_similarity` is the share of reference states (of other episodes) within a fixed radius of a
step's state, averaged over steps (Belkhale, Cui, Sadigh 2023); the radius is the median distance
to the 16th nearest. `coverage` is a state's surprise in nats, averaged over steps: its mean over
the reference's own steps is the entropy of its scaled states. More of either is not better by
itself.

Long episodes are asked at 200 evenly spaced steps.
"""

from __future__ import annotations

import numpy as np

from pipeline.quality.action import MAX_FAULTY_SHARE, episode_means
from pipeline.quality.reference import Placed
from pipeline.quality.surroundings import readings

STEPS = 200
"""Steps of one episode that are asked at most."""


def score_similarity(placed: Placed) -> dict[str, np.ndarray]:
    """Returns `state_similarity` and `coverage` of a block's episodes, (E,), NaN for none."""
    block, known = placed.block, placed.model.surroundings
    count = len(block.lengths)
    rows, episodes = spaced(block.lengths)
    kept = block.acting[rows]
    rows, episodes = rows[kept], episodes[kept]
    if known is None or not len(rows):
        return dict.fromkeys(("state_similarity", "coverage"), np.full(count, np.nan))
    points = placed.model.states.points(placed.predictors[rows])
    similarity, surprise = readings(known, points, block.fingerprints[episodes])
    faulty = block.faulty_actions > MAX_FAULTY_SHARE * block.lengths
    return {
        name: np.where(faulty, np.nan, episode_means(values, episodes, count))
        for name, values in (("state_similarity", similarity), ("coverage", surprise))
    }


def spaced(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows of a block to ask, and the episode of each; at most 200 per episode."""
    starts = np.cumsum(lengths) - lengths
    rows = [
        start + np.unique(np.rint(np.linspace(0, length - 1, min(length, STEPS))).astype(np.int64))
        for start, length in zip(starts, lengths, strict=True)
    ]
    episodes = np.repeat(np.arange(len(lengths)), [len(some) for some in rows])
    return np.concatenate(rows) if rows else np.zeros(0, np.int64), episodes
