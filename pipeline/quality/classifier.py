"""A classifier two-sample test: can a logistic regression tell which side a row is from?

Rows of one episode resemble one another, so folds and resamples are of whole episodes. The score of
every row comes from a fit that has not seen its episode. The area under the ROC curve (AUC) is 0.5
where nothing tells the sides apart. The fit's logit is also an estimate of the log density ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

FOLDS = 5
PENALTY = 1.0
"""Squared coefficients count this much against the summed log loss."""
PRODUCT_DIMS = 12
"""Rows of at most so many dims are given their squares and products as well."""
MOST_ROUNDS = 100
"""Of the optimiser: where the sides are nearly separable, later ones move logits, not ranks."""
RATIO_LIMIT = 100.0
"""Density ratios are clipped to [1 / limit, limit]."""


@dataclass(frozen=True)
class TwoSamples:
    """What a cross-validated classifier says of two sets of rows."""

    auc: float
    low: float
    """End of the 95 % interval of the AUC, over resampled episodes."""
    high: float
    logits: np.ndarray  # (n + m,) float64, log density ratio of side one to side zero


def two_samples(
    zero: np.ndarray,
    one: np.ndarray,
    zero_episodes: np.ndarray,
    one_episodes: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> TwoSamples:
    """Returns how well the sides can be told apart; NaN where either has fewer than two episodes.

    Args:
        zero: (n, D) finite rows.
        one: (m, D) rows on the same scale.
        zero_episodes: (n,) whole numbers, equal for rows of one episode.
        one_episodes: (m,) the same.
        resamples: bootstrap size.
        seed: of folds and resamples.
    """
    x = _features(np.concatenate([zero, one]))
    y = np.repeat([0.0, 1.0], [len(zero), len(one)])
    owners = _owners(zero_episodes, one_episodes)
    sides = [np.unique(owners[y == side]) for side in (0, 1)]
    if min(map(len, sides)) < 2:
        nothing = float("nan")
        return TwoSamples(nothing, nothing, nothing, np.full(len(y), nothing))
    rng = np.random.default_rng(seed)
    folds = np.zeros(int(owners.max()) + 1, np.int64)
    for side in sides:
        folds[rng.permutation(side)] = np.arange(len(side)) % min(FOLDS, *map(len, sides))
    logits = np.zeros(len(y))
    for fold in np.unique(folds[owners]):
        held = folds[owners] == fold
        logits[held] = _apply(x[held], _fit(x[~held], y[~held]))
    prior = np.log(len(one) / len(zero))
    ranks = rankdata(logits, method="dense") - 1
    drawn = [_auc(ranks, y, _times(owners, sides, rng)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (np.nan, np.nan)
    return TwoSamples(_auc(ranks, y, np.ones(len(y))), float(low), float(high), logits - prior)


def density_ratio(logits: np.ndarray) -> np.ndarray:
    """Returns density ratios of side one to side zero, clipped; as importance weights of zero's."""
    most = np.log(RATIO_LIMIT)
    return np.asarray(np.exp(np.clip(logits, -most, most)))


def _features(rows: np.ndarray) -> np.ndarray:
    """(N, F): rows, with their products where these are few, standardised together."""
    dims = rows.shape[1]
    if dims <= PRODUCT_DIMS:
        upper = np.triu_indices(dims)
        centred = rows - rows.mean(0)
        rows = np.concatenate([rows, centred[:, upper[0]] * centred[:, upper[1]]], axis=1)
    deviation = rows.std(0)
    return np.asarray((rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1.0))


def _owners(zero: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Each row's episode as a small number; those of the two sides are never the same."""
    first = np.unique(zero, return_inverse=True)[1]
    second = np.unique(one, return_inverse=True)[1]
    return np.concatenate([first, second + first.max(initial=-1) + 1])


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(F + 1,) coefficients and intercept of least penalised log loss."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = _apply(x, weights)
        slip = expit(logits) - y
        value = np.logaddexp(0, logits).sum() - y @ logits
        value += 0.5 * PENALTY * (weights[:-1] ** 2).sum()
        slope = np.append(x.T @ slip + PENALTY * weights[:-1], slip.sum())
        return float(value) / len(y), slope / len(y)

    start = np.zeros(x.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ROUNDS})
    return np.asarray(found.x)


def _apply(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(x @ weights[:-1] + weights[-1])


def _times(owners: np.ndarray, sides: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(N,) how often each row is drawn where each side's episodes are resampled."""
    times = np.zeros(int(owners.max()) + 1)
    for side in sides:
        np.add.at(times, rng.choice(side, len(side)), 1.0)
    return np.asarray(times[owners])


def _auc(ranks: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Share of weighted pairs of rows that the ranks put in order; ties count half."""
    zero = np.bincount(ranks, weights * (y == 0))
    one = np.bincount(ranks, weights * (y == 1))
    below = np.cumsum(zero) - zero
    pairs = zero.sum() * one.sum()
    return float((one * (below + 0.5 * zero)).sum() / pairs) if pairs else float("nan")
