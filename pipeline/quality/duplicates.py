"""Episodes that are copies of others: exact ones, and copies with a little noise on them.

An episode's signature is the hash of its rows and a short vector: sixteen evenly spaced rows of
scaled states and actions, projected at random to 32 numbers, which keeps distances within some
15 % (Johnson and Lindenstrauss). Episodes of nearly equal length whose rows differ by less than
5 % of a standard deviation, root mean square, are the same demonstration. Signatures are kept
with the scores, so that later episodes are compared with all earlier ones without reading these
again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from pipeline.quality.reference import Placed

POINTS = 16
"""Rows of an episode that its signature sees."""
DIMS = 32
"""Numbers of a signature."""
NEAR = 0.05
"""Standard deviations, root mean square, by which copies may differ."""
LENGTHS = 0.05
"""Share of its length by which a copy may be longer or shorter."""
_FAR = 1e6
"""Scaled values beyond this are faults; copies of them are told by the hash of their rows."""
_SEED = 20_240_611

SIGNATURE = np.dtype(
    [("rows", "<u8"), ("layout", "<u4"), ("length", "<i8"), ("vector", "<f4", (DIMS,))]
)
"""What is kept of an episode: hash of its rows, of its layout, T, and the projected rows in
units in which their distance is a root mean square."""


def signatures(placed: Placed) -> np.ndarray:
    """Returns the signatures of a block's episodes, (E,) of `SIGNATURE`."""
    block, model = placed.block, placed.model
    rows = np.concatenate(
        [model.states.points(placed.predictors), model.targets.encode(block.targets)], axis=1
    )
    starts = np.cumsum(block.lengths) - block.lengths
    at = np.rint(np.linspace(0, 1, POINTS) * (block.lengths[:, None] - 1)).astype(np.int64)
    seen = np.clip(np.nan_to_num(rows[starts[:, None] + at]), -_FAR, _FAR)
    seen = seen.reshape(len(block.lengths), -1)
    found = np.zeros(len(block.lengths), SIGNATURE)
    found["rows"] = block.fingerprints
    found["layout"] = zlib.crc32(block.layout.key.encode())
    found["length"] = block.lengths
    found["vector"] = seen @ _projection(seen.shape[1]) / np.sqrt(max(seen.shape[1], 1))
    return found


def originals(
    found: Sequence[bytes | None], asked: np.ndarray | None = None, copies: np.ndarray | None = None
) -> list[int | None]:
    """Returns for each episode the position of the earlier one that it is a copy of, or None.

    An original is never a copy itself: the first of several equal episodes stands for all.

    Args:
        found: signatures as bytes, in the version's order; None where there is none.
        asked: (E,) bool, the episodes to answer for; by default all.
        copies: (E,) bool, those that are not asked for and known to be copies of others.
    """
    answer: list[int | None] = [None] * len(found)
    is_asked = np.ones(len(found), bool) if asked is None else asked
    is_copy = np.zeros(len(found), bool) if copies is None else copies.copy()
    present = np.array([data is not None for data in found], bool)
    table = np.zeros(len(found), SIGNATURE)
    table[present] = np.frombuffer(b"".join(data for data in found if data is not None), SIGNATURE)
    for layout in np.unique(table["layout"][present & is_asked]):
        members = np.flatnonzero(present & (table["layout"] == layout))
        own = table[members]
        wanted = np.flatnonzero(is_asked[members])
        tree = cKDTree(own["vector"])
        near = tree.query_ball_point(own["vector"][wanted], NEAR, return_sorted=True)
        for at, others in zip(wanted, near, strict=True):
            for other in others:
                if other >= at:
                    break
                if not is_copy[members[other]] and _same(own[at], own[other]):
                    answer[members[at]] = int(members[other])
                    is_copy[members[at]] = True
                    break
    return answer


def named_originals(
    ids: Sequence[str],
    found: Sequence[bytes | None],
    asked: np.ndarray | None = None,
    copies: np.ndarray | None = None,
) -> list[str | None]:
    """Returns `originals` by id."""
    return [None if at is None else ids[at] for at in originals(found, asked, copies)]


def _same(one: np.void, two: np.void) -> bool:
    if one["rows"] == two["rows"]:
        return True
    most = max(1.0, LENGTHS * min(one["length"], two["length"]))
    return bool(abs(one["length"] - two["length"]) <= most)


def _projection(width: int) -> np.ndarray:
    """(width, DIMS) float64; a function of the width alone, so that signatures stay comparable."""
    rng = np.random.default_rng([_SEED, width])
    return np.asarray(rng.normal(size=(width, DIMS)) / np.sqrt(DIMS))
