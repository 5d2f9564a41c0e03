"""Neighbours of other episodes: exact backends against brute force, and the recall."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality import neighbors
from pipeline.quality.neighbors import build
from schemas.errors import UnknownNameError


def cloud(rows: int, dims: int, episodes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random walks, one per episode, so that a point's nearest are its own episode's."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(episodes, rows // episodes, dims)).cumsum(1)
    return steps.reshape(-1, dims), np.repeat(np.arange(episodes), rows // episodes)


def brute(
    points: np.ndarray, groups: np.ndarray, query: np.ndarray, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(query[:, None] - points[None], axis=2)
    distances[groups[None] == own[:, None]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(distances, order, 1)
    return found, np.where(np.isfinite(found), order, -1)


@pytest.mark.parametrize("backend", ["ckdtree", "flat"])
@pytest.mark.parametrize(("episodes", "k"), [(10, 5), (2, 16), (1, 3)])
def test_exact_backends_exclude_the_own_episode(backend: str, episodes: int, k: int) -> None:
    points, groups = cloud(600, 3, episodes)
    index = build(points, groups, backend=backend)
    distances, rows = brute(points, groups, points, groups, k)
    found = index.query(points, k, groups)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    assert index.recall == 1.0


def test_fewer_points_than_asked_for() -> None:
    points = np.arange(4.0)[:, None]
    index = build(points, np.array([0, 0, 1, 1]), backend="ckdtree")
    found = index.query(points[:1], 3, np.array([0]))
    np.testing.assert_array_equal(found.rows, [[2, 3, -1]])
    np.testing.assert_array_equal(found.distances, [[2.0, 3.0, np.inf]])
    assert index.query(points[:0], 3).rows.shape == (0, 3)


def test_exact_backends_agree_far_from_the_origin() -> None:
    points, groups = cloud(500, 4, 5)
    points += 1e6
    one = build(points, groups, backend="ckdtree").query(points, 4, groups)
    two = build(points, groups, backend="flat").query(points, 4, groups)
    np.testing.assert_allclose(one.distances, two.distances, rtol=1e-6)


def test_approximate_index_records_the_recall_that_it_has() -> None:
    pytest.importorskip("faiss")
    points, groups = cloud(20_000, 24, 100)
    index = build(points, groups, backend="faiss_ivf")
    assert index.recall >= neighbors.RECALL
    exact = build(points, groups, backend="flat").query(points[::40], 8, groups[::40])
    found = index.query(points[::40], 8, groups[::40])
    hits = [np.isin(a, b).mean() for a, b in zip(exact.rows, found.rows, strict=True)]
    assert np.mean(hits) >= neighbors.RECALL - 0.02
    again = build(points, groups, backend="faiss_ivf").query(points[:50], 8, groups[:50])
    np.testing.assert_array_equal(
        again.rows, index.query(points[:50], 8, groups[:50]).rows, "not deterministic"
    )


def test_auto_is_exact_for_few_dimensions() -> None:
    points, groups = cloud(3_000, 6, 10)
    assert build(points, groups).backend in ("ckdtree", "flat")
    assert build(np.tile(points, 5), groups).backend == "flat"


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="ckdtree"):
        build(np.zeros((3, 1)), np.zeros(3), backend="ckdtre")
