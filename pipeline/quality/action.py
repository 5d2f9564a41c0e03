"""How much a demonstrator's actions scatter: action variance and action divergence.

`action_variance` is the paper's measure (Belkhale, Cui, Sadigh 2023, "Data Quality in Imitation
Learning"): the squared distance of a_t to the mean action of similar states. It mostly reads how
much states differ inside a cluster. `action_divergence` is calibrated: r_t, the squared residual of
a_t around a policy fitted to the other episodes, is an unbiased reading of the noise variance where
the policy is locally linear. `action_divergence_h` weighs it as their Theorem 4.1 does:
AD_H = (1/T) sum_t (T - t) r_t.

Units: mean over action dims of squared standardised actions. A discrete dim is one-hot and not
standardised, so that its variance is 1 - sum p^2 (Gini impurity) and its divergence the Brier score
of the fitted policy. A constant dim has its std set to 1 and contributes zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.quality.leave_out import LeftOut, Rows, leave_out
from pipeline.quality.reference import Placed

MAX_FAULTY_SHARE = 0.01
"""An episode with a larger share of NaN rows has no score."""


@dataclass(frozen=True)
class ActionSteps:
    """Per-step readings of a block's scorable rows."""

    rows: np.ndarray  # (n,) int64, positions in the block
    variance: np.ndarray  # (n,) float64
    divergence: np.ndarray  # (n,) float64, r_t


def action_steps(placed: Placed) -> ActionSteps | None:
    """Returns per-step action readings of a block; None where the task has no policy fit."""
    block, model = placed.block, placed.model
    if model.policy is None:
        return None
    rows = np.flatnonzero(block.acting)
    found = leave_out(
        model.policy,
        Rows(
            x=placed.predictors[rows],
            y=model.targets.encode(block.targets[rows]),
            labels=placed.labels[rows],
            episodes=block.episodes[rows],
            copies=placed.copies,
        ),
    )
    dims = model.targets.dims
    return ActionSteps(rows, found.spread / dims, calibrated_square(found) / dims)


def calibrated_square(found: LeftOut) -> np.ndarray:
    """(n,) squared residuals over targets, each divided by 1 + leverage."""
    return np.asarray((found.residual**2).sum(1) / (1 + found.leverage))


def score_actions(placed: Placed) -> dict[str, np.ndarray]:
    """Returns the action metrics of a block's episodes, (E,) float64 each, NaN for none."""
    names = ("action_variance", "action_divergence", "action_divergence_h")
    block = placed.block
    count = len(block.lengths)
    steps = action_steps(placed)
    if steps is None:
        return {name: np.full(count, np.nan) for name in names}
    episodes = block.episodes[steps.rows]
    early = (block.lengths[episodes] - block.steps[steps.rows]).astype(np.float64)
    scores = (
        episode_means(steps.variance, episodes, count),
        episode_means(steps.divergence, episodes, count),
        horizon_weighted(steps.divergence, early, episodes, block.lengths),
    )
    faulty = block.faulty_actions > MAX_FAULTY_SHARE * block.lengths
    return {name: np.where(faulty, np.nan, s) for name, s in zip(names, scores, strict=True)}


def episode_means(values: np.ndarray, episodes: np.ndarray, count: int) -> np.ndarray:
    """Returns (E,) means of (n,) values by episode; NaN for an episode without rows."""
    rows = np.bincount(episodes, minlength=count)
    sums = np.bincount(episodes, values, minlength=count)
    return np.where(rows > 0, sums / np.maximum(rows, 1), np.nan)


def horizon_weighted(
    divergence: np.ndarray, early: np.ndarray, episodes: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Returns (E,) AD_H = (1/T) sum_t (T - t) r_t (Theorem 4.1's weights, t from 0).

    Where single steps could not be scored, the others' weighted mean stands for them; a constant
    r gives r (T + 1) / 2 either way.

    Args:
        divergence: (n,) r_t.
        early: (n,) T - t.
        episodes: (n,) index of each step's episode.
        lengths: (E,) T.
    """
    count = len(lengths)
    weights = np.bincount(episodes, early, minlength=count)
    sums = np.bincount(episodes, early * divergence, minlength=count)
    mean = np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nan)
    return np.asarray(mean * (lengths + 1) / 2)
