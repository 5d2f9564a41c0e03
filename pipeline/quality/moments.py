"""Counts, means and centred cross-moments per cluster, merged exactly in any order.

Every estimator that needs more than one row is built on these. They are Chan, Golub and LeVeque's
pairwise updates ("Updating formulae and a pairwise algorithm for computing sample variances",
1979) in float64: raw sums lose the residual variance as soon as data sit far from zero, centred
merges do not. Merging is associative and commutative up to rounding, and has an inverse, which
takes one episode out of a cluster again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class CrossMoments:
    """Moments of pairs (x, y) in C clusters; x has p dims, y has q dims (q may be 0)."""

    count: np.ndarray  # (C,) float64, rows
    mean_x: np.ndarray  # (C, p) float64
    mean_y: np.ndarray  # (C, q) float64
    xx: np.ndarray  # (C, p, p) float64, sum of (x - mean_x)(x - mean_x)^T
    xy: np.ndarray  # (C, p, q) float64, sum of (x - mean_x)(y - mean_y)^T
    yy: np.ndarray  # (C, q) float64, diagonal of the sum of (y - mean_y)(y - mean_y)^T
    within: np.ndarray  # (q, q) float64, the full such sum, pooled over clusters

    @property
    def clusters(self) -> int:
        """C."""
        return len(self.count)

    @property
    def rows(self) -> float:
        """Rows in all clusters together."""
        return float(self.count.sum())

    @cached_property
    def total(self) -> CrossMoments:
        """The same rows as one cluster."""
        share = self.count / max(self.rows, 1.0)
        mean_x, mean_y = share @ self.mean_x, share @ self.mean_y
        dx, dy = self.mean_x - mean_x, self.mean_y - mean_y
        weighted = self.count[:, None] * dx
        return CrossMoments(
            count=np.array([self.rows]),
            mean_x=mean_x[None],
            mean_y=mean_y[None],
            xx=(self.xx.sum(0) + weighted.T @ dx)[None],
            xy=(self.xy.sum(0) + weighted.T @ dy)[None],
            yy=(self.yy.sum(0) + self.count @ dy**2)[None],
            within=self.within + (self.count[:, None] * dy).T @ dy,
        )

    def take(self, labels: np.ndarray) -> CrossMoments:
        """Returns the clusters that `labels` names, one entry each; `within` is not carried."""
        return CrossMoments(
            self.count[labels],
            self.mean_x[labels],
            self.mean_y[labels],
            self.xx[labels],
            self.xy[labels],
            self.yy[labels],
            np.zeros_like(self.within),
        )

    def repeated(self, times: np.ndarray) -> CrossMoments:
        """Returns the moments of every cluster's rows taken `times` (C,) over; not `within`."""
        return CrossMoments(
            self.count * times,
            self.mean_x,
            self.mean_y,
            self.xx * times[:, None, None],
            self.xy * times[:, None, None],
            self.yy * times[:, None],
            np.zeros_like(self.within),
        )


def empty(clusters: int, p: int, q: int) -> CrossMoments:
    """Returns the moments of no rows: the neutral element of `merge`."""
    return CrossMoments(
        np.zeros(clusters),
        np.zeros((clusters, p)),
        np.zeros((clusters, q)),
        np.zeros((clusters, p, p)),
        np.zeros((clusters, p, q)),
        np.zeros((clusters, q)),
        np.zeros((q, q)),
    )


def measure(x: np.ndarray, y: np.ndarray, labels: np.ndarray, clusters: int) -> CrossMoments:
    """Returns the moments of a block of rows.

    Args:
        x: (N, p) float64.
        y: (N, q) float64.
        labels: (N,) integers, the cluster of each row.
        clusters: C.
    """
    found = empty(clusters, x.shape[1], y.shape[1])
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(present, np.split(order, starts[1:]), strict=False):
        if not len(rows):
            continue
        mean_x, mean_y = x[rows].mean(0), y[rows].mean(0)
        dx, dy = x[rows] - mean_x, y[rows] - mean_y
        # The rounding of the means is taken out again, which keeps large offsets exact.
        slip_x, slip_y = dx.mean(0), dy.mean(0)
        dx, dy = dx - slip_x, dy - slip_y
        found.count[label] = len(rows)
        found.mean_x[label], found.mean_y[label] = mean_x + slip_x, mean_y + slip_y
        found.xx[label], found.xy[label] = dx.T @ dx, dx.T @ dy
        square = dy.T @ dy
        found.yy[label] = np.diagonal(square)
        found.within[...] += square
    return found


def merge(one: CrossMoments, two: CrossMoments) -> CrossMoments:
    """Returns the moments of both sets of rows together (Chan's update)."""
    count = one.count + two.count
    share = two.count / np.maximum(count, 1.0)
    dx, dy = two.mean_x - one.mean_x, two.mean_y - one.mean_y
    weight = one.count * share
    weighted_x = weight[:, None] * dx
    return CrossMoments(
        count=count,
        mean_x=_moved(one.count, one.mean_x, two.mean_x, dx, share),
        mean_y=_moved(one.count, one.mean_y, two.mean_y, dy, share),
        xx=one.xx + two.xx + weighted_x[:, :, None] * dx[:, None, :],
        xy=one.xy + two.xy + weighted_x[:, :, None] * dy[:, None, :],
        yy=one.yy + two.yy + weight[:, None] * dy**2,
        within=one.within + two.within + (weight[:, None] * dy).T @ dy,
    )


def without(whole: CrossMoments, part: CrossMoments) -> CrossMoments:
    """Returns the moments of the rows of `whole` that are not in `part` (the inverse update).

    `part` must be a subset of `whole`, cluster by cluster. A cluster left without rows is zero.
    """
    count = np.round(whole.count - part.count)
    some = count > 0
    left = np.where(some, count, 1.0)
    ratio = (part.count / left)[:, None]
    mean_x = whole.mean_x + (whole.mean_x - part.mean_x) * ratio
    mean_y = whole.mean_y + (whole.mean_y - part.mean_y) * ratio
    dx, dy = part.mean_x - mean_x, part.mean_y - mean_y
    weight = part.count * count / np.maximum(whole.count, 1.0)
    weighted_x = weight[:, None] * dx
    xx = whole.xx - part.xx - weighted_x[:, :, None] * dx[:, None, :]
    xy = whole.xy - part.xy - weighted_x[:, :, None] * dy[:, None, :]
    yy = whole.yy - part.yy - weight[:, None] * dy**2
    return CrossMoments(
        count=np.where(some, count, 0.0),
        mean_x=np.where(some[:, None], mean_x, 0.0),
        mean_y=np.where(some[:, None], mean_y, 0.0),
        xx=np.where(some[:, None, None], xx, 0.0),
        xy=np.where(some[:, None, None], xy, 0.0),
        yy=np.where(some[:, None], np.maximum(yy, 0.0), 0.0),
        within=whole.within - part.within - (weight[:, None] * dy).T @ dy,
    )


def _moved(
    count: np.ndarray, one: np.ndarray, two: np.ndarray, delta: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Merged means; a side without rows leaves the other side's mean exactly as it is."""
    return np.where((count == 0)[:, None], two, one + delta * share[:, None])
