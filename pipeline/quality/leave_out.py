"""Rows judged by fits that have not seen their own episode.

A row is judged by a fit that has not seen its episode (rows of one episode resemble one another):
the episode's moments are taken out of its clusters and of the task. The prediction error of such a
fit has the variance noise * (1 + h), h the row's leverage, so squared residuals are divided by
1 + h: calibrated for few rows, and sceptical where the others say little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.quality.fits import CHUNK_VALUES, ClusterFits, own_slopes, ridge
from pipeline.quality.moments import CrossMoments, without


@dataclass(frozen=True)
class LeftOut:
    """Rows against predictions made without their own episode; NaN where too few rows are left."""

    residual: np.ndarray  # (N, q) float64
    leverage: np.ndarray  # (N,) float64, h
    spread: np.ndarray  # (N,) float64, squared distance to the cluster's mean y, unbiased


@dataclass(frozen=True)
class Rows:
    """Rows to judge."""

    x: np.ndarray  # (N, p) float64
    y: np.ndarray  # (N, q) float64
    labels: np.ndarray  # (N,) int64, clusters
    episodes: np.ndarray  # (N,) int64, ascending, index of the row's episode
    copies: np.ndarray  # (E,) float64, how often each episode is in the reference

    def __len__(self) -> int:
        return len(self.x)


def leave_out(fits: ClusterFits, rows: Rows) -> LeftOut:
    """Judges every row by fits to the reference without the row's own episode.

    Episodes that are not in the reference (`copies` 0) are judged by all of it; one that is there
    several times is taken out several times.
    """
    q = rows.y.shape[1]
    found = LeftOut(
        np.full((len(rows), q), np.nan), np.full(len(rows), np.nan), np.zeros(len(rows))
    )
    p = rows.x.shape[1]
    per_chunk = max(1, CHUNK_VALUES // max(1, p * (p + q)))
    for start, stop in _chunks(rows.episodes, per_chunk):
        part = slice(start, stop)
        _judge(fits, rows, np.arange(start, stop), found)
        poor = ~np.isfinite(found.leverage[part])
        found.residual[part][poor] = np.nan
        found.spread[part][poor] = np.nan
    return found


def _judge(fits: ClusterFits, rows: Rows, index: np.ndarray, found: LeftOut) -> None:
    """Fills `found` for the rows at `index`, which are whole episodes."""
    present, local = np.unique(rows.episodes[index], return_inverse=True)
    parent = _Parent(fits, rows, index, local, rows.copies[present])
    keys = local * fits.moments.clusters + rows.labels[index]
    for positions, mask in _groups(keys):
        at = index[positions]
        owners = local[positions[:, 0]]
        labels = rows.labels[at[:, 0]]
        x, y = rows.x[at], rows.y[at]
        group = _group_moments(x, y, mask).repeated(rows.copies[present][owners])
        left = without(fits.moments.take(labels), group)
        inverse = np.linalg.inv(left.xx + fits.strength * fits.metric + ridge(left.xx))
        base = parent.slopes[owners]
        slopes = base + inverse @ (left.xy - left.xx @ base)
        dx = x - left.mean_x[:, None]
        half = dx @ inverse
        shrunk = dx - half @ left.xx  # the share of x that the prior answers for
        rest = np.maximum(left.count, 1.0)[:, None]
        leverage = 1 / rest + (half * dx).sum(2) + _form(shrunk, parent.inverse[owners])
        residual = y - left.mean_y[:, None] - dx @ slopes
        spread = ((y - left.mean_y[:, None]) ** 2).sum(2) * rest / (rest + 1)
        alone = left.count < 2
        if alone.any():
            residual[alone], leverage[alone], spread[alone] = parent.judge(
                x[alone], y[alone], owners[alone]
            )
        leverage[parent.count[owners] < 2 * (rows.x.shape[1] + 1)] = np.nan
        flat = at[mask]
        found.residual[flat], found.leverage[flat] = residual[mask], leverage[mask]
        found.spread[flat] = spread[mask]


class _Parent:
    """The fit of the whole task without each of some episodes."""

    def __init__(
        self,
        fits: ClusterFits,
        rows: Rows,
        index: np.ndarray,
        local: np.ndarray,
        copies: np.ndarray,
    ) -> None:
        p, q = fits.prior.shape
        count = len(copies)
        self.count = np.zeros(count)  # (E,) rows left
        self.mean_x, self.mean_y = np.zeros((count, p)), np.zeros((count, q))
        self.slopes, self.inverse = np.zeros((count, p, q)), np.zeros((count, p, p))
        whole = fits.moments.total
        for positions, mask in _groups(local):
            at, owners = index[positions], local[positions[:, 0]]
            group = _group_moments(rows.x[at], rows.y[at], mask).repeated(copies[owners])
            left = without(whole.take(np.zeros(len(owners), np.int64)), group)
            self.count[owners] = left.count
            self.mean_x[owners], self.mean_y[owners] = left.mean_x, left.mean_y
            self.slopes[owners], self.inverse[owners] = own_slopes(left)

    def judge(
        self, x: np.ndarray, y: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residual (G, m, q), leverage (G, m) and spread (G, m) of padded groups of rows."""
        dx = x - self.mean_x[owners][:, None]
        dy = y - self.mean_y[owners][:, None]
        rest = np.maximum(self.count[owners], 1.0)[:, None]
        leverage = 1 / rest + _form(dx, self.inverse[owners])
        return dy - dx @ self.slopes[owners], leverage, (dy**2).sum(2) * rest / (rest + 1)


def _group_moments(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> CrossMoments:
    """Moments of G padded groups of rows: x (G, m, p), y (G, m, q), mask (G, m)."""
    count = mask.sum(1).astype(np.float64)
    weight = mask[:, :, None]
    mean_x = (x * weight).sum(1) / count[:, None]
    mean_y = (y * weight).sum(1) / count[:, None]
    dx, dy = (x - mean_x[:, None]) * weight, (y - mean_y[:, None]) * weight
    turned = dx.transpose(0, 2, 1)
    q = y.shape[2]
    return CrossMoments(
        count, mean_x, mean_y, turned @ dx, turned @ dy, (dy**2).sum(1), np.zeros((q, q))
    )


def _groups(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields groups of equal keys, batched by size and padded to (G, m): positions and mask.

    Sizes share a batch up to a factor of two, so padding at most doubles the work.
    """
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    sizes = np.diff(starts, append=len(keys))
    classes = np.ceil(np.log2(sizes)).astype(np.int64)
    for size_class in np.unique(classes):
        wanted = classes == size_class
        reach = np.arange(int(sizes[wanted].max()))
        mask = reach < sizes[wanted][:, None]
        yield order[starts[wanted][:, None] + np.where(mask, reach, 0)], mask


def _chunks(episodes: np.ndarray, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of about `rows` rows each that split no episode; at least one episode each."""
    ends = np.append(np.flatnonzero(np.diff(episodes)) + 1, len(episodes))
    start = 0
    while start < len(episodes):
        fitting = ends[(ends > start) & (ends <= start + rows)]
        stop = int(fitting[-1]) if len(fitting) else int(ends[ends > start][0])
        yield start, stop
        start = stop


def _form(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """v^T M v for v in (G, m, p) and M in (G, p, p): (G, m)."""
    return np.asarray(((vectors @ matrices) * vectors).sum(2))
