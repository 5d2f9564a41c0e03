"""Sources that state every step's next observation, as D4RL and robomimic may.

Within an episode the next observation must be the next row's observation; then only the last one
says anything new: the final observation. A row that contradicts the one after it means steps are
missing between them. A last row that repeats its observation bit for bit is the copy that some
converters put where the true one was lost (robomimic's own does), not a final observation.
"""

from __future__ import annotations

import numpy as np


def differing_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: rows of two (N, ...) arrays that differ; NaN equals NaN."""
    differ = left != right
    found = np.asarray(differ.any(axis=tuple(range(1, differ.ndim))))
    if left.dtype.kind == "f" and found.any():  # of most rows nobody has to ask for NaN
        at = np.flatnonzero(found)
        both_nan = np.isnan(left[at]) & np.isnan(right[at])
        found[at] = (differ[at] & ~both_nan).any(axis=tuple(range(1, differ.ndim)))
    return found


def breaks(observations: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: rows whose next observation is not the row after; the last is False."""
    found = np.zeros(len(observations), bool)
    found[:-1] = differing_rows(next_observations[:-1], observations[1:])
    return found


def with_finals(
    observations: np.ndarray, next_observations: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Returns (N + E, ...): observations with each episode's final one after its last row.

    Args:
        observations: (N, ...) rows of E whole episodes.
        next_observations: (N, ...) of the same dtype.
        ends: (E,) exclusive end row of each episode; the last is N.
    """
    rows = len(observations) + len(ends)
    joined = np.empty((rows, *observations.shape[1:]), observations.dtype)
    first = 0
    for episode, end in enumerate(ends.tolist()):
        joined[first + episode : end + episode] = observations[first:end]
        first = end
    joined[ends + np.arange(len(ends))] = next_observations[ends - 1]
    return joined
