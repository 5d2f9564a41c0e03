"""Weights by which a learner may sample: of steps by advantage, of episodes by return or quality.

* AWR (Peng et al. 2019): min(exp(A / beta), 100) per step, A = G_t - V(s_t), with V a linear fit of
  the return to go on the state; the limit is IQL's.
* RW and AW (Hong et al. 2023): softmax of the episodes' returns, or of their advantages over a
  linear fit on the first state, both scaled to [0, 1], by a temperature. Equal returns make equal
  weights, where scaling would divide by zero.
* Quality: clip(1 - rank / n)^gamma, the best episode first.

Every weighting comes with its effective sample size (sum w)^2 / sum w^2 and its largest share: a
few heavy episodes are few episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

LIMIT = 100.0
"""Of an exponentiated advantage."""
RIDGE = 1e-6
"""Share of the mean variance of the state added to each dim's."""


@dataclass(frozen=True)
class Weighting:
    """Weights and what is left of their data."""

    weights: np.ndarray  # (n,) float64, at least 0

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2: so many equal weights would say as much; 0 of none."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares if squares > 0 else 0.0

    @property
    def largest_share(self) -> float:
        """Share of the largest weight; 0 of none."""
        total = float(self.weights.sum())
        return float(self.weights.max()) / total if total > 0 else 0.0


def advantage_weights(advantages: np.ndarray, beta: float) -> Weighting:
    """Returns AWR weights of (n,) advantages; NaN weighs nothing.

    Args:
        advantages: return to go less the state's value, in units of reward.
        beta: temperature in the same units; smaller is greedier.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.minimum(np.exp(advantages / beta), LIMIT)
    return Weighting(np.where(np.isnan(weights), 0.0, weights))


def softmax_weights(values: np.ndarray, temperature: float) -> Weighting:
    """Returns RW (of returns) or AW (of advantages) weights that add up to 1.

    Args:
        values: (E,) returns or advantages; those that are not finite weigh nothing.
        temperature: of values scaled to [0, 1].
    """
    known = np.isfinite(values)
    weights = np.zeros(len(values))
    if not known.any():
        return Weighting(weights)
    low, high = values[known].min(), values[known].max()
    scaled = (values[known] - low) / (high - low) if high > low else np.zeros(int(known.sum()))
    powers = np.exp((scaled - scaled.max()) / temperature)
    weights[known] = powers / powers.sum()
    return Weighting(weights)


def rank_weights(scores: np.ndarray, gamma: float, *, higher_is_better: bool) -> Weighting:
    """Returns (1 - rank / n)^gamma, the best of n scores at rank 0; equal ones share their rank.

    Args:
        scores: (E,) of a metric; those that are not finite weigh nothing.
        gamma: 0 weighs all alike; more favours the best.
        higher_is_better: False for a divergence, say.
    """
    known = np.isfinite(scores)
    weights = np.zeros(len(scores))
    ordered = -scores[known] if higher_is_better else scores[known]
    ranks = rankdata(ordered) - 1
    weights[known] = np.clip(1 - ranks / max(int(known.sum()), 1), 0.0, 1.0) ** gamma
    return Weighting(weights)


def returns_to_go(rewards: np.ndarray, discount: float = 1.0) -> np.ndarray:
    """Returns (T,) G_t, the discounted sum of rewards from step t on."""
    found = np.empty(len(rewards))
    ahead = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        ahead = float(rewards[step]) + discount * ahead
        found[step] = ahead
    return found


@dataclass(frozen=True)
class ValueMoments:
    """What a linear fit of returns on states needs; merged by Chan's update."""

    count: float
    mean: np.ndarray  # (S + 1,) float64, of states and return side by side
    square: np.ndarray  # (S + 1, S + 1) float64, centred

    @classmethod
    def of(cls, states: np.ndarray, returns: np.ndarray) -> ValueMoments:
        """Returns the moments of (n, S) states and (n,) returns; rows with NaN are left out."""
        rows = np.column_stack([states, returns]).astype(np.float64)
        rows = rows[np.isfinite(rows).all(1)]
        mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
        centred = rows - mean
        return cls(float(len(rows)), mean, centred.T @ centred)

    def merge(self, other: ValueMoments) -> ValueMoments:
        """Returns the moments of both sets of rows."""
        count = self.count + other.count
        share = other.count / max(count, 1.0)
        apart = other.mean - self.mean
        square = self.square + other.square + self.count * share * np.outer(apart, apart)
        return ValueMoments(count, self.mean + apart * share, square)

    def fit(self) -> LinearValue:
        """Returns V(s) of least squares, with a little ridge."""
        states = self.square[:-1, :-1]
        dims = len(states)
        ridge = RIDGE * np.trace(states) / max(dims, 1) + 1e-12
        slopes = np.linalg.solve(states + ridge * np.eye(dims), self.square[:-1, -1])
        return LinearValue(slopes, float(self.mean[-1] - self.mean[:-1] @ slopes))


@dataclass(frozen=True)
class LinearValue:
    """V(s) = s^T slopes + offset."""

    slopes: np.ndarray  # (S,) float64
    offset: float

    def of(self, states: np.ndarray) -> np.ndarray:
        """Returns (n,) values of (n, S) states."""
        return np.asarray(states @ self.slopes + self.offset)
