"""Frozen feature scaling of one task: states to whitened predictors, actions to unit variance.

Fitted once on the reference and stored with it, so that later episodes are scored on the same
scale. Constant dims are dropped from the state. Predictors are principal components of the
standardised state, scaled to unit variance: all directions that carry variance, up to 64 (fits do
not lose the small but decisive ones). Clusters are formed on fewer: the standardised dims as they
are, or where there are more than `pca_dims`, that many leading components, whitened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.quality.moments import CrossMoments

MAX_PREDICTORS = 64
ROWS_PER_PREDICTOR = 8
EIGENVALUE_FLOOR = 1e-8
"""Components with less than this share of the first one's variance are rounding."""
MAX_CLASSES = 32
"""Whole-number actions with a wider range than this count as continuous."""


@dataclass(frozen=True)
class StateScale:
    """How raw states become predictors and points to cluster."""

    kept: np.ndarray  # (S,) bool, dims that are not constant
    mean: np.ndarray  # (K,) float64, of the kept dims
    components: np.ndarray  # (K, M) float64, whitening projection of centred kept dims
    spread: np.ndarray  # (D,) float64, scale of the first D predictors where clusters form

    @property
    def predictors(self) -> int:
        """M."""
        return int(self.components.shape[1])

    def predict_from(self, states: np.ndarray) -> np.ndarray:
        """Returns (N, M) whitened predictors of (N, S) raw states."""
        return np.asarray((states[:, self.kept] - self.mean) @ self.components)

    def points(self, predictors: np.ndarray) -> np.ndarray:
        """Returns (N, D) points to cluster."""
        return np.ascontiguousarray(predictors[:, : len(self.spread)] * self.spread)


@dataclass(frozen=True)
class ActionScale:
    """How raw actions become columns with comparable units."""

    mean: np.ndarray  # (A,) float64
    std: np.ndarray  # (A,) float64; 1 for constant dims
    classes: np.ndarray  # (A,) int64, one-hot columns of a discrete dim; 0 where continuous
    low: np.ndarray  # (A,) float64, smallest value
    constant: np.ndarray  # (A,) bool

    @property
    def dims(self) -> int:
        """A."""
        return len(self.mean)

    @property
    def columns(self) -> int:
        """Columns after encoding."""
        return int(np.maximum(self.classes, 1).sum())

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Returns (N, columns): continuous dims standardised, discrete dims one-hot."""
        if not self.classes.any():
            return np.asarray((actions - self.mean) / self.std)
        parts = []
        for dim, classes in enumerate(self.classes):
            values = actions[:, dim : dim + 1]
            if classes:
                parts.append((values - self.low[dim] == np.arange(classes)).astype(np.float64))
            else:
                parts.append((values - self.mean[dim]) / self.std[dim])
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Range:
    """Smallest and largest value per column, merged exactly."""

    low: np.ndarray  # (A,) float64, +inf of no rows
    high: np.ndarray  # (A,) float64, -inf of no rows


def measure_range(rows: np.ndarray) -> Range:
    """Returns the range of (N, A) rows."""
    return Range(rows.min(0, initial=np.inf), rows.max(0, initial=-np.inf))


def merge_ranges(one: Range, two: Range) -> Range:
    """Returns the range of both sets of rows together."""
    return Range(np.minimum(one.low, two.low), np.maximum(one.high, two.high))


def side_by_side(one: Range, two: Range) -> Range:
    """Returns the range of the columns of both."""
    return Range(np.concatenate([one.low, two.low]), np.concatenate([one.high, two.high]))


def fit_states(
    moments: CrossMoments, span: Range, pca_dims: int, action_columns: int
) -> StateScale:
    """Returns the state scale of a task.

    Args:
        moments: of the raw states, as x, in one cluster.
        span: their range.
        pca_dims: D at most; more dims than this are clustered on leading components.
        action_columns: predictors that dynamics fits need besides the state's.
    """
    rows = moments.rows
    deviation = np.sqrt(np.diagonal(moments.xx[0]) / max(rows, 1.0))
    kept = ~_is_constant(deviation, moments.mean_x[0], span)
    deviation, mean = deviation[kept], moments.mean_x[0][kept]
    correlation = moments.xx[0][np.ix_(kept, kept)] / max(rows, 1.0)
    correlation = correlation / np.outer(deviation, deviation)
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    most = max(0, int(rows // ROWS_PER_PREDICTOR) - 1 - action_columns)
    count = min(int((values > EIGENVALUE_FLOOR * values[:1]).sum()), MAX_PREDICTORS, most)
    spread = np.sqrt(values[:count])
    components = vectors[:, :count] / deviation[:, None] / spread
    if kept.sum() > pca_dims:
        spread = np.ones(min(count, pca_dims))
    return StateScale(kept, mean, components, spread)


def fit_actions(moments: CrossMoments, span: Range, discrete: np.ndarray) -> ActionScale:
    """Returns the action scale of a task.

    Args:
        moments: of the raw actions, as x, in one cluster.
        span: their range.
        discrete: (A,) bool, columns of whole numbers.
    """
    rows = moments.rows
    deviation = np.sqrt(np.diagonal(moments.xx[0]) / max(rows, 1.0))
    constant = _is_constant(deviation, moments.mean_x[0], span)
    width = np.where(discrete & ~constant, span.high - span.low + 1, 0)
    return ActionScale(
        mean=moments.mean_x[0],
        std=np.where(constant, 1.0, deviation),
        classes=np.where(width <= MAX_CLASSES, width, 0).astype(np.int64),
        low=span.low,
        constant=constant,
    )


def _is_constant(deviation: np.ndarray, mean: np.ndarray, span: Range) -> np.ndarray:
    """True where a column never changes, or by no more than the rounding of its values."""
    return np.asarray((span.low >= span.high) | (deviation <= 1e-12 * np.abs(mean)))
