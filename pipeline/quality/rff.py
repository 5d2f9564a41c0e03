"""Random Fourier features: distributions compared by the mean of their rows' features.

phi(x) = [cos(W x), sin(W x)] with W ~ N(0, 1 / bandwidth^2) approximates a Gaussian kernel (Rahimi
and Recht 2007). The squared maximum mean discrepancy of two sets of rows is then a distance of two
means, which merge exactly over shards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

FREQUENCIES = 2048
PAIRS = 2_000
"""Rows between which the median distance is taken."""
_ROWS = 4_096


@dataclass(frozen=True)
class Frequencies:
    """A frozen map from rows to features."""

    dims: int
    bandwidth: float
    seed: int = 0
    count: int = FREQUENCIES

    @cached_property
    def matrix(self) -> np.ndarray:
        """(dims, count) float64."""
        rng = np.random.default_rng([self.seed, self.dims])
        return np.asarray(rng.normal(size=(self.dims, self.count)) / self.bandwidth)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Returns (n, 2 count) of (n, dims); the squares of each row's sum to `count`."""
        turned = rows @ self.matrix
        return np.concatenate([np.cos(turned), np.sin(turned)], axis=1)


@dataclass(frozen=True)
class Embedding:
    """The summed features of some rows; merged by adding."""

    rows: int
    total: np.ndarray  # (2 count,) float64

    def merge(self, other: Embedding) -> Embedding:
        """Returns the embedding of both sets of rows."""
        return Embedding(self.rows + other.rows, self.total + other.total)

    @property
    def mean(self) -> np.ndarray:
        """(2 count,) mean features; zeros of no rows."""
        return np.asarray(self.total / max(self.rows, 1))


def embed(rows: np.ndarray, frequencies: Frequencies) -> Embedding:
    """Returns the embedding of (n, dims) rows."""
    total = np.zeros(2 * frequencies.count)
    for start in range(0, len(rows), _ROWS):
        total += frequencies.features(rows[start : start + _ROWS]).sum(0)
    return Embedding(len(rows), total)


def merged(parts: Iterable[Embedding], frequencies: Frequencies) -> Embedding:
    """Returns the embedding of all parts."""
    found = Embedding(0, np.zeros(2 * frequencies.count))
    for part in parts:
        found = found.merge(part)
    return found


def median_distance(rows: np.ndarray, seed: int = 0) -> float:
    """Returns the median distance of random pairs of rows; 1 where it is nothing."""
    if len(rows) < 2:
        return 1.0
    rng = np.random.default_rng(seed)
    one, two = rng.integers(len(rows), size=(2, PAIRS))
    gaps = np.linalg.norm(rows[one[one != two]] - rows[two[one != two]], axis=1)
    median = float(np.median(gaps)) if len(gaps) else 0.0
    return median if np.isfinite(median) and median > 0 else 1.0


def mmd_squared(one: Embedding, two: Embedding) -> float:
    """Returns the unbiased squared discrepancy of two sets of independent rows.

    ||m_x - m_y||^2 / D - (1 - ||m_x||^2 / D) / (n - 1) - (1 - ||m_y||^2 / D) / (m - 1), D
    frequencies; about 0 for rows of one distribution, NaN below two rows.
    """
    if min(one.rows, two.rows) < 2:
        return float("nan")
    scale = len(one.total) / 2
    x, y = one.mean, two.mean
    biased = float(((x - y) ** 2).sum() / scale)
    spread = [(1 - float(m @ m) / scale) / (e.rows - 1) for m, e in ((x, one), (y, two))]
    return biased - sum(spread)


def effective_rank(rows: np.ndarray, frequencies: Frequencies) -> float:
    """Returns how many kinds of rows there are: the Vendi score (Friedman and Dieng 2023).

    The exponential of the entropy of the eigenvalues of the features' second moment, which are
    those of the rows' kernel matrix divided by n: 1 for equal rows, k for k clusters far apart.

    Args:
        rows: (n, dims), n at least 1.
        frequencies: about 256 of them will do: the cost is cubic.
    """
    moment = np.zeros((2 * frequencies.count, 2 * frequencies.count))
    for start in range(0, len(rows), _ROWS):
        features = frequencies.features(rows[start : start + _ROWS])
        moment += features.T @ features
    values = np.linalg.eigvalsh(moment / (len(rows) * frequencies.count))
    shares = np.maximum(values, 0.0)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
