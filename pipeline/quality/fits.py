"""Linear fits inside clusters, shrunk towards the fit of the whole task.

In cluster c a target y is modelled as y = m_c + B_c^T (x - x_c) + noise. Slopes have the prior
B_c ~ N(B, noise / (k W)): B is the slope of the whole task, W the pooled within-cluster covariance
of x, and k the prior's strength in rows. k maximises the marginal likelihood (empirical Bayes), so
a linear system is fitted as one, a curved one locally, and a cluster of few rows falls back to its
parent smoothly instead of at a threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.quality.moments import CrossMoments

RIDGE = 1e-6
"""Share of the mean variance of x added to its diagonal."""
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e5)
NOISE_FLOOR = 1e-8
"""Share of a target's variance below which what is left is rounding, not evidence."""
CHUNK_VALUES = 1 << 23
"""Numbers that a chunk of per-group matrices holds at most."""


@dataclass(frozen=True)
class ClusterFits:
    """Moments of one task's clusters and what is needed to predict from them."""

    moments: CrossMoments
    strength: float
    """k, prior rows per cluster; 0 where there is one cluster and nothing to shrink to."""
    noise: np.ndarray  # (q, q) float64, covariance of what the fits leave over

    @cached_property
    def metric(self) -> np.ndarray:
        """(p, p) W, the pooled within-cluster covariance of x, with a ridge."""
        pooled = self.moments.xx.sum(0) / max(self.moments.rows, 1.0)
        return np.asarray(pooled + ridge(pooled))

    @cached_property
    def prior(self) -> np.ndarray:
        """(p, q) B, the slopes of the whole task."""
        return np.asarray(own_slopes(self.moments.total)[0][0])


def fit_clusters(moments: CrossMoments) -> ClusterFits | None:
    """Returns the fits of one task; None where it has fewer than 2 (p + 1) rows."""
    p = moments.mean_x.shape[1]
    if moments.rows < 2 * (p + 1):
        return None
    first = ClusterFits(moments, 0.0, np.empty((0, 0)))
    strength = 0.0
    if (moments.count > 0).sum() > 1:
        strength = min(STRENGTHS, key=lambda k: _surprise(first, k))
    return ClusterFits(moments, strength, _noise(first, strength))


def _surprise(fits: ClusterFits, strength: float) -> float:
    """-2 log marginal likelihood of the clusters' rows at prior strength k, up to a constant.

    Integrating slopes out of y ~ N(x B_c, v), B_c ~ N(B, v / (k W)) leaves, per target,
    n log Q + sum_c (log|G_c| - log|k W|), with G_c = Sxx_c + k W and Q the sum over clusters of
    Syy_c - Sxy_c^T G_c^-1 Sxy_c, all about the prior mean (Bishop 2006, section 3.5).
    """
    moments, prior = fits.moments, fits.prior
    q = prior.shape[1]
    left, volume = np.zeros(q), 0.0
    weight = strength * fits.metric
    for labels in _filled(moments):
        part = moments.take(labels)
        xy = part.xy - part.xx @ prior
        system = part.xx + weight
        yy = part.yy - ((part.xy + xy) * prior).sum(1)
        left += (yy - (xy * np.linalg.solve(system, xy)).sum(1)).sum(0)
        volume += float((np.linalg.slogdet(system)[1] - np.linalg.slogdet(weight)[1]).sum())
    freedom = max(moments.rows - (moments.count > 0).sum(), 1.0)
    floor = NOISE_FLOOR * moments.total.yy[0] / moments.rows + np.finfo(float).tiny
    return float(freedom * np.log(np.maximum(left / freedom, floor)).sum() + q * volume)


def _noise(fits: ClusterFits, strength: float) -> np.ndarray:
    """(q, q) covariance of what the fits leave over, by the rows' degrees of freedom.

    An intercept per cluster and the task's slopes are spent; local slopes are integrated out.
    """
    moments, prior = fits.moments, fits.prior
    xx, xy = moments.xx.sum(0), moments.xy.sum(0)
    left = moments.within - prior.T @ xy - xy.T @ prior + prior.T @ xx @ prior
    if strength:
        for labels in _filled(moments):
            part = moments.take(labels)
            local = part.xy - part.xx @ prior
            system = part.xx + strength * fits.metric
            left = left - np.einsum("cpq,cpr->qr", local, np.linalg.solve(system, local))
    freedom = moments.rows - (moments.count > 0).sum() - prior.shape[0]
    return np.asarray((left + left.T) / (2 * max(freedom, 1.0)))


def _filled(moments: CrossMoments) -> Iterator[np.ndarray]:
    """Chunks of the clusters that have at least two rows."""
    labels = np.flatnonzero(moments.count >= 2)
    p, q = moments.xy.shape[1:]
    per_chunk = max(1, CHUNK_VALUES // max(1, p * (p + q)))
    for start in range(0, len(labels), per_chunk):
        yield labels[start : start + per_chunk]


def own_slopes(moments: CrossMoments) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (C, p, q) of each cluster on its own, and the inverse (C, p, p) behind them."""
    inverse = np.linalg.inv(moments.xx + ridge(moments.xx))
    return inverse @ moments.xy, inverse


def ridge(matrices: np.ndarray) -> np.ndarray:
    """Diagonal (..., p, p) that keeps a solve with these matrices well-posed."""
    p = matrices.shape[-1]
    trace = np.trace(matrices, axis1=-2, axis2=-1)[..., None, None] / max(p, 1)
    return np.asarray((RIDGE * np.maximum(trace, 0.0) + 1e-12) * np.eye(p))
