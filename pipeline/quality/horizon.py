"""How long episodes are and what they return: the plain facts beside the fitted metrics."""

from __future__ import annotations

from pipeline.quality.integrity import check
from schemas.episode import Episode


def score_facts(episode: Episode) -> dict[str, float]:
    """Returns the metrics that need no reference; NaN where the episode has no such fact."""
    total = episode.episode_return
    return {
        "length": float(episode.length),
        "episode_return": float("nan") if total is None else total,
        "integrity": check(episode).score,
    }
