"""What keeps an episode out of a version.

Only integrity may exclude: NaN or infinite values in observations, actions or rewards, and an
episode without steps. (Lengths and dtypes are checked when an `Episode` is made.) Everything else
about quality is a score, never a gate here.
"""

from __future__ import annotations

import numpy as np

from schemas.episode import Episode
from schemas.errors import EpisodeError


def fault_of(episode: Episode) -> EpisodeError | None:
    """Returns why an episode must be refused, or None."""
    where = episode.source_key or episode.episode_id
    if episode.length == 0:
        return EpisodeError(
            "Expected at least one step, came none.", code="length_mismatch", where=where
        )
    for name, array in episode.arrays.items():
        if name.startswith("extras/") or array.dtype.kind != "f":
            continue
        finite = np.isfinite(array)
        if finite.all():
            continue
        step = int(np.argwhere(~finite)[0][0])
        bad = np.isnan(array).any()
        return EpisodeError(
            f"Expected finite {name}, came {int((~finite).sum())} "
            f"{'NaN' if bad else 'infinite'} values, the first at step {step}; repair the source "
            f"or leave the episode out.",
            code="nan" if bad else "inf",
            where=where,
        )
    return None
