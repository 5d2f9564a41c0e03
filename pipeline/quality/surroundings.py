"""A frozen sample of a task's states, and how any state stands among them.

States are compared with those of other episodes only: see `neighbors.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import digamma, gammaln

from pipeline.quality import neighbors
from pipeline.quality.neighbors import NeighborIndex, Neighbors

NEIGHBORS = 16
RADIUS_ROWS = 2_000
"""Reference states from which the radius is found."""
_NEAREST = 1e-9
"""Distances below this are those of repeated states."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A frozen sample of a task's states that others are compared with."""

    points: np.ndarray  # (n, D) float64, scaled as clusters are
    owners: np.ndarray  # (n,) uint64, content hash of the episode each belongs to
    radius: np.ndarray  # () float64
    actions: np.ndarray | None = None  # (n, columns) float64, encoded, of the same steps
    backend: np.ndarray | None = None  # () str, of the index that a probe chose; None chooses anew

    @cached_property
    def index(self) -> NeighborIndex:
        """Made once per process."""
        backend = "auto" if self.backend is None else str(self.backend)
        return neighbors.build(self.points, self.owners.view(np.int64), backend=backend)


def surroundings(
    points: np.ndarray, owners: np.ndarray, actions: np.ndarray | None = None
) -> Surroundings | None:
    """Returns the frozen sample; None where too few states, dims or episodes make one."""
    if len(points) <= 2 * NEIGHBORS or not points.shape[1] or len(np.unique(owners)) < 2:
        return None
    asked = np.arange(0, len(points), max(1, len(points) // RADIUS_ROWS))
    index = neighbors.build(points, owners.view(np.int64))
    found = index.query(points[asked], NEIGHBORS, owners[asked].view(np.int64))
    distances = found.distances[:, -1]
    finite = distances[np.isfinite(distances)]
    radius = max(float(np.median(finite)), _NEAREST) if len(finite) else _NEAREST
    return Surroundings(points, owners, np.array(radius), actions, np.array(index.backend))


def nearest(known: Surroundings, points: np.ndarray, owners: np.ndarray) -> Neighbors:
    """Returns the 16 nearest known states of other episodes; arguments as for `readings`."""
    return known.index.query(points, NEIGHBORS, owners.view(np.int64))


def readings(
    known: Surroundings, points: np.ndarray, owners: np.ndarray, found: Neighbors | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the similarity (a share) and the surprise (nats) of some states.

    Similarity is the share of known states within the frozen radius. Surprise is the
    Kozachenko-Leonenko reading D ln r_16 + ln V_D + psi(N) - psi(16), r_16 being the distance to
    the 16th nearest of N known states in D dims.

    Args:
        known: the reference sample.
        points: (n, D) states on its scale.
        owners: (n,) uint64, content hash of each one's episode, whose own states do not count.
        found: what `nearest` says of them, if it was asked already.
    """
    names, own_rows = np.unique(known.owners, return_inverse=True)
    at = np.clip(np.searchsorted(names, owners), 0, len(names) - 1)
    is_member = names[at] == owners
    counts = np.bincount(own_rows, minlength=len(names))
    others = len(known.points) - np.where(is_member, counts[at], 0)
    radius = float(known.radius)
    found = nearest(known, points, owners) if found is None else found
    within = (found.distances <= radius).sum(1).astype(np.float64)
    # Where the 16th lies within the radius, others may too: those are counted one by one.
    more = np.flatnonzero(found.distances[:, -1] <= radius)
    if len(more):
        near = points[more]
        counted = known.index.tree.query_ball_point(near, radius, return_length=True)
        member = np.where(is_member, at, -1)[more]
        within[more] = counted - _own_within(known, near, member, own_rows, radius)
    far = np.maximum(found.distances[:, -1], _NEAREST)
    dims = points.shape[1]
    ball = 0.5 * dims * np.log(np.pi) - gammaln(0.5 * dims + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        similarity = np.where(others > 0, within / np.maximum(others, 1), np.nan)
        surprise = dims * np.log(far) + ball + digamma(others) - digamma(NEIGHBORS)
    return similarity, np.where(np.isfinite(far), surprise, np.nan)


def _own_within(
    known: Surroundings, points: np.ndarray, member: np.ndarray, own_rows: np.ndarray, radius: float
) -> np.ndarray:
    """(n,) how many of its own episode's states are within the radius of each."""
    within = np.zeros(len(points))
    order = np.argsort(own_rows, kind="stable")
    bounds = np.searchsorted(own_rows[order], np.arange(own_rows.max(initial=0) + 2))
    for name in np.unique(member[member >= 0]):
        mine = np.flatnonzero(member == name)
        own = known.points[order[bounds[name] : bounds[name + 1]]]
        gaps = points[mine][:, None] - own[None]
        within[mine] = (np.einsum("qnd,qnd->qn", gaps, gaps) <= radius**2).sum(1)
    return within
