"""Clusters of similar states: k-means on a sample, frozen, then nearest centroid for every row.

Seeding and iterations see a sample in an order fixed by content, so the same data and seed give
the same clusters on every engine.
"""

from __future__ import annotations

import numpy as np

MAX_CLUSTERS = 1024
ITERATIONS = 20
SEEDING_ROWS_PER_CLUSTER = 16
ASSIGN_ROWS = 2048
"""Rows compared with all centroids at a time: small enough for the cache."""


def cluster_count(rows: float, predictors: int, wanted: int | None) -> int:
    """Returns how many clusters to make: `wanted`, else min(1024, rows / (8 p)), at least 1.

    Args:
        rows: rows of the task in the reference.
        predictors: p, the intercept included; eight times as many rows per cluster on average.
        wanted: as the config has it.
    """
    return wanted or max(1, min(MAX_CLUSTERS, int(rows // (8 * predictors))))


def fit_centroids(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Returns (C, D) centroids of (n, D) points by k-means++ and Lloyd's iterations.

    C is at most `clusters`: distinct points may be fewer, and empty clusters are dropped.
    """
    if clusters <= 1 or len(points) <= 1 or points.shape[1] == 0:
        return points.mean(0, keepdims=True) if len(points) else np.zeros((1, points.shape[1]))
    rng = np.random.default_rng(seed)
    centroids = _spread(points[: clusters * SEEDING_ROWS_PER_CLUSTER], clusters, rng)
    labels = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        before, labels = labels, assign(points, centroids)
        if np.array_equal(before, labels):
            break
        counts = np.bincount(labels, minlength=len(centroids))
        sums = np.stack(
            [np.bincount(labels, column, minlength=len(centroids)) for column in points.T], axis=1
        )
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    present = np.unique(assign(points, centroids))
    return np.asarray(centroids[present])


def assign(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns (n,) the nearest centroid of each point."""
    labels = np.zeros(len(points), np.int64)
    if len(centroids) == 1:
        return labels
    # |x - c|^2 / 2 without its |x|^2: one matrix product; points are scaled, so it is exact enough.
    half = (centroids**2).sum(1) / 2
    turned = np.ascontiguousarray(centroids.T)
    for start in range(0, len(points), ASSIGN_ROWS):
        part = slice(start, start + ASSIGN_ROWS)
        labels[part] = (half - points[part] @ turned).argmin(1)
    return labels


def _spread(points: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): next centre with odds of its squared distance."""
    chosen = [int(rng.integers(len(points)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(clusters, len(points)) and distance.sum() > 0:
        odds = np.cumsum(distance)
        chosen.append(int(np.searchsorted(odds, rng.random() * odds[-1], side="right")))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen]
