"""Nearest neighbours of states, always without the rows of the query's own episode.

Neighbours from the same episode hide what they are asked about: temporally correlated noise makes
them agree. So every point belongs to a group (its episode), and a query names its own.

Three backends behind one function. `ckdtree` and `flat` are exact and agree; which of them is
faster depends on the intrinsic dimension of the data (65-fold either way), so a probe decides.
`faiss_ivf` is approximate, for many rows of many dimensions; its recall is measured against exact
answers and kept with the index.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.spatial import cKDTree

from schemas.errors import UnknownNameError, missing_extra, suggest

BACKENDS: tuple[str, ...] = ("auto", "ckdtree", "flat", "faiss_ivf")
TREE_DIMS = 20
"""A tree is tried up to so many dimensions."""
FLAT_ROWS = 100_000
"""Up to so many rows of more dimensions are searched exactly."""
PROBES = 200
"""Queries by which tree and flat search are compared."""
CALIBRATION = 500
"""Exact queries by which an approximate index finds its `nprobe`."""
RECALL = 0.98
"""Share of true neighbours that an approximate index must find."""
_CALIBRATED = 17
_OWN = 16
"""Neighbours of its own episode that a query is first assumed to have, at most."""
_BATCH = 8_192
_FLAT_VALUES = 1 << 25
"""Distances that flat search holds at a time."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest points of each query, nearest first; equal distances in the points' order."""

    distances: np.ndarray  # (Q, k) float64, inf where there are fewer
    rows: np.ndarray  # (Q, k) int64, index of the point, -1 where there are fewer


class _Search(Protocol):
    """Finds neighbours without minding groups."""

    def nearest(self, points: np.ndarray, k: int) -> Neighbors:
        """Returns the k nearest of each of some points."""
        ...


@dataclass(frozen=True)
class NeighborIndex:
    """Points that can be asked for the nearest of other groups."""

    points: np.ndarray  # (N, D) float64
    groups: np.ndarray  # (N,) int64
    backend: str
    """`ckdtree`, `flat` or `faiss_ivf`."""
    recall: float
    """Share of true neighbours found, measured; 1 for the exact ones."""
    search: _Search

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """The groups in order, and how many points each has."""
        return np.unique(self.groups, return_counts=True)

    @cached_property
    def tree(self) -> cKDTree:
        """For counts within a radius."""
        return self.search.tree if isinstance(self.search, _Tree) else cKDTree(self.points)

    def query(self, points: np.ndarray, k: int, groups: np.ndarray | None = None) -> Neighbors:
        """Returns the k nearest points of other groups.

        Args:
            points: (Q, D) float64.
            k: how many.
            groups: (Q,) int64, the group each query belongs to; None excludes nothing.
        """
        parts = [
            self._batch(
                points[start : start + _BATCH],
                k,
                None if groups is None else groups[start : start + _BATCH],
            )
            for start in range(0, len(points), _BATCH)
        ]
        if not parts:
            return Neighbors(np.zeros((0, k)), np.zeros((0, k), np.int64))
        return Neighbors(
            np.concatenate([part.distances for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )

    def _batch(self, points: np.ndarray, k: int, groups: np.ndarray | None) -> Neighbors:
        if groups is None:
            return self.search.nearest(points, k)
        distances = np.full((len(points), k), np.inf)
        rows = np.full((len(points), k), -1, np.int64)
        waiting = np.arange(len(points))
        names, sizes = self.sizes
        at = np.minimum(np.searchsorted(names, groups), len(names) - 1)
        own_rows = np.where(names[at] == groups, sizes[at], 0)
        asked = k + _OWN
        while len(waiting):
            # All points of its own episode and k more are always enough.
            asked = min(asked, k + int(own_rows[waiting].max()), len(self.points))
            found = self.search.nearest(points[waiting], asked)
            own = (found.rows < 0) | (self.groups[found.rows] == groups[waiting, None])
            order = np.argsort(own, axis=1, kind="stable")[:, :k]
            others = np.take_along_axis(own, order, 1)
            width = order.shape[1]
            distances[waiting, :width] = np.where(
                others, np.inf, np.take_along_axis(found.distances, order, 1)
            )
            rows[waiting, :width] = np.where(others, -1, np.take_along_axis(found.rows, order, 1))
            # Fewer than k others were among those asked for: ask these again, for more.
            short = ((~own).sum(1) < k) & (asked < k + own_rows[waiting])
            waiting = waiting[short] if asked < len(self.points) else waiting[:0]
            asked *= 4
        return Neighbors(distances, rows)


def build(
    points: np.ndarray, groups: np.ndarray, *, backend: str = "auto", seed: int = 0
) -> NeighborIndex:
    """Returns an index of points.

    Args:
        points: (N, D) finite numbers, N at least 1.
        groups: (N,) int64, the episode that each point belongs to.
        backend: `auto` takes an exact one up to 20 dimensions or 100,000 points, of those the one
            that a probe finds faster; otherwise `faiss_ivf`.
        seed: of the approximate index's training.

    Raises:
        UnknownNameError: for an unknown backend.
        MissingExtraError: if `faiss_ivf` is wanted and faiss is not installed.
    """
    if backend not in BACKENDS:
        raise UnknownNameError(
            f"Expected a neighbour backend, came {backend!r}; {suggest(backend, BACKENDS)}"
        )
    points = np.ascontiguousarray(points, np.float64)
    groups = np.asarray(groups, np.int64)
    search = _chosen(points) if backend == "auto" else _made(points, backend)
    if search is None:
        return _fit_ivf(points, groups, seed)
    name = "ckdtree" if isinstance(search, _Tree) else "flat"
    return NeighborIndex(points, groups, name, 1.0, search)


def _made(points: np.ndarray, backend: str) -> _Tree | _Flat | None:
    """An exact search; None for the approximate one."""
    if backend == "faiss_ivf":
        return None
    return _tree(points) if backend == "ckdtree" else _flat(points)


def _chosen(points: np.ndarray) -> _Tree | _Flat | None:
    """The exact search that a probe finds faster; None where the approximate one is wanted."""
    rows, dims = points.shape
    small = rows <= FLAT_ROWS
    if dims > TREE_DIMS:
        return _flat(points) if small else None
    probes = points[:: max(1, rows // PROBES)][:PROBES]
    tree, flat = _tree(points), _flat(points)
    if _seconds(tree, probes) <= _seconds(flat, probes):
        return tree
    return flat if small else None


def _seconds(search: _Search, probes: np.ndarray) -> float:
    began = time.process_time()
    search.nearest(probes, _CALIBRATED)
    return time.process_time() - began


@dataclass(frozen=True)
class _Tree:
    tree: Any

    def nearest(self, points: np.ndarray, k: int) -> Neighbors:
        distances, rows = self.tree.query(points, k=np.arange(1, k + 1))
        return _ordered(distances, np.where(np.isfinite(distances), rows, -1))


@dataclass(frozen=True)
class _Flat:
    points: np.ndarray
    squares: np.ndarray

    def nearest(self, points: np.ndarray, k: int) -> Neighbors:
        k = min(k, len(self.points))
        step = max(1, _FLAT_VALUES // len(self.points))
        parts = [self._some(points[at : at + step], k) for at in range(0, len(points), step)]
        return Neighbors(
            np.concatenate([part.distances for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )

    def _some(self, points: np.ndarray, k: int) -> Neighbors:
        scores = self.squares - 2.0 * (points @ self.points.T)
        # The expanded square loses digits that a difference keeps: a few more, then exactly.
        wanted = min(k + 8, len(self.points))
        near = np.argpartition(scores, wanted - 1, axis=1)[:, :wanted]
        gaps = self.points[near] - points[:, None, :]
        distances = np.sqrt(np.einsum("qkd,qkd->qk", gaps, gaps))
        found = _ordered(distances, near)
        return Neighbors(found.distances[:, :k], found.rows[:, :k])


@dataclass(frozen=True)
class _Ivf:
    index: Any
    points: np.ndarray

    def nearest(self, points: np.ndarray, k: int) -> Neighbors:
        _, near = self.index.search(np.ascontiguousarray(points, np.float32), k)
        gaps = self.points[near] - points[:, None, :]
        distances = np.sqrt(np.einsum("qkd,qkd->qk", gaps, gaps))
        return _ordered(np.where(near < 0, np.inf, distances), near)


def _fit_ivf(points: np.ndarray, groups: np.ndarray, seed: int) -> NeighborIndex:
    """Returns an inverted-file index with the fewest probes that reach the wanted recall.

    Recall is that of queries as they will come, without their own episode: other episodes' points
    lie further off, in cells that fewer probes miss.
    """
    faiss = _faiss()
    rows, dims = points.shape
    cells = int(np.clip(4 * np.sqrt(rows), 1, max(1, rows // 39)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dims), dims, cells)
    index.cp.seed = seed
    single = np.ascontiguousarray(points, np.float32)
    rng = np.random.default_rng(seed)
    index.train(single[rng.permutation(rows)[: 64 * cells]])
    index.add(single)
    sample = rng.permutation(rows)[:CALIBRATION]
    k = min(_CALIBRATED, rows)
    exact = NeighborIndex(points, groups, "flat", 1.0, _flat(points))
    true = exact.query(points[sample], k, groups[sample]).rows
    search = _Ivf(index, points)
    nprobe, recall = 1, 0.0
    while recall < RECALL and nprobe < 2 * cells:
        index.nprobe = min(nprobe, cells)
        found = NeighborIndex(points, groups, "faiss_ivf", 0.0, search)
        rows_found = found.query(points[sample], k, groups[sample]).rows
        hits = sum(int(np.isin(a, b).sum()) for a, b in zip(true, rows_found, strict=True))
        recall = hits / true.size
        nprobe *= 2
    return NeighborIndex(points, groups, "faiss_ivf", recall, search)


def _tree(points: np.ndarray) -> _Tree:
    return _Tree(cKDTree(points))


def _flat(points: np.ndarray) -> _Flat:
    return _Flat(points, np.einsum("nd,nd->n", points, points))


def _ordered(distances: np.ndarray, rows: np.ndarray) -> Neighbors:
    """Sorts each query's neighbours by distance, then by row."""
    order = np.lexsort((rows, distances), axis=1)
    return Neighbors(
        np.take_along_axis(distances, order, 1),
        np.take_along_axis(rows, order, 1).astype(np.int64),
    )


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("neighbors", "faiss") from error
    return faiss
