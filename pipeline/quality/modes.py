"""Action divergence of a demonstrator with several ways: the nearest few of its likes' actions.

Where a demonstrator passes an obstacle now left, now right, a fitted policy aims at the middle and
its residual reads the distance of the two ways. Among the actions of the 16 nearest states of other
episodes, those of the same way are the nearest: `action_divergence_modes` is the mean of the 3
smallest squared distances, per action dim, averaged over steps. It reads about the noise variance
of a policy of two ways, and some 0.4 of it where there is one: compare episodes by it, not with
`action_divergence`.
"""

from __future__ import annotations

import numpy as np

from pipeline.quality.neighbors import Neighbors
from pipeline.quality.surroundings import Surroundings

NEAREST = 3


def mode_distances(
    known: Surroundings, found: Neighbors, actions: np.ndarray, dims: int
) -> np.ndarray:
    """Returns (n,) mean squared distances to the nearest few actions; NaN where there are fewer.

    Args:
        known: the reference sample.
        found: neighbours of each state in it.
        actions: (n, columns) encoded actions, on the sample's scale.
        dims: action dims that the columns stand for.
    """
    if known.actions is None:
        return np.full(len(actions), np.nan)
    gaps = known.actions[found.rows] - actions[:, None]
    squares = np.where(found.rows < 0, np.inf, np.einsum("nkd,nkd->nk", gaps, gaps))
    if squares.shape[1] < NEAREST:
        return np.full(len(actions), np.nan)
    nearest = np.partition(squares, NEAREST - 1, axis=1)[:, :NEAREST].mean(1) / dims
    return np.where(np.isfinite(nearest), nearest, np.nan)
