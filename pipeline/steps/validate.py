"""What keeps an episode out of a version.

Only integrity may exclude: NaN or infinite values in observations, actions or rewards, and an
episode without steps. (Lengths and dtypes are checked when an `Episode` is made.) Everything else
about quality is a score, never a gate here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.packed import Packed, Rows


def fault_of(episode: Episode) -> EpisodeError | None:
    """Returns why an episode must be refused, the first reason, or None."""
    return next(faults_of(episode), None)


def faults_of(episode: Episode) -> Iterator[EpisodeError]:
    """Yields every reason why an episode must be refused."""
    where = episode.source_key or episode.episode_id
    if episode.length == 0:
        yield EpisodeError(
            "Expected at least one step, came none.", code="length_mismatch", where=where
        )
    for name, rows in episode.arrays.items():
        if name.startswith("extras/"):
            continue
        values = _floats(rows)
        finite = np.isfinite(values)
        if finite.all():
            continue
        first = int(np.argwhere(~finite)[0][0])
        if isinstance(rows, Packed):  # rows of their own lengths, end to end
            first = int(np.searchsorted(rows.offsets, first * values.itemsize, "right")) - 1
        bad = np.isnan(values).any()
        yield EpisodeError(
            f"Expected finite {name}, came {int((~finite).sum())} "
            f"{'NaN' if bad else 'infinite'} values, the first at step {first}; repair the source "
            f"or leave the episode out.",
            code="nan" if bad else "inf",
            where=where,
        )


def _floats(rows: Rows) -> np.ndarray:
    """The values that could be other than finite: pictures, texts and whole numbers cannot."""
    if isinstance(rows, Packed) and rows.spec.encoding == "ragged" and rows.dtype.kind == "f":
        return rows.data.view(rows.dtype)
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f":
        return rows
    return np.zeros(0)
