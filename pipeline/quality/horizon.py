"""The metrics of an episode alone: its length and return, how it moves, whether it is sound."""

from __future__ import annotations

from pipeline.quality.integrity import check
from pipeline.quality.motion import idle, smoothness
from schemas.episode import Episode


def score_facts(episode: Episode) -> dict[str, float]:
    """Returns the metrics that need no reference; NaN where the episode has no such fact."""
    total = episode.episode_return
    pauses = idle(episode)
    return {
        "length": float(episode.length),
        "episode_return": float("nan") if total is None else total,
        "idle_fraction": float("nan") if pauses is None else pauses.fraction,
        "longest_pause": float("nan") if pauses is None else float(pauses.longest),
        "smoothness": smoothness(episode),
        "integrity": check(episode).score,
    }
