"""The metrics of an episode alone: its length and rewards, how it moves, whether it is sound."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pipeline.quality.integrity import check
from pipeline.quality.jerk import log_dimensionless_jerk
from pipeline.quality.motion import idle, smoothness
from schemas.episode import Episode

NAN = float("nan")


def score_facts(episode: Episode, names: Collection[str]) -> dict[str, float]:
    """Returns those of the wanted metrics that need no reference; NaN where there is no such fact.

    Args:
        episode: whole.
        names: of metrics; those that need a reference are passed over.
    """
    found: dict[str, float] = {}
    if "length" in names:
        found["length"] = float(episode.length)
    if "episode_return" in names:
        total = episode.episode_return
        found["episode_return"] = NAN if total is None else total
    if "sparsity" in names:
        found["sparsity"] = _sparsity(episode)
    if "idle_fraction" in names or "longest_pause" in names:
        pauses = idle(episode)
        found["idle_fraction"] = NAN if pauses is None else pauses.fraction
        found["longest_pause"] = NAN if pauses is None else float(pauses.longest)
    if "smoothness" in names:
        found["smoothness"] = smoothness(episode)
    if "jerk" in names:
        found["jerk"] = log_dimensionless_jerk(episode)
    if "integrity" in names:
        found["integrity"] = check(episode).score
    return found


def _sparsity(episode: Episode) -> float:
    """Share of the known rewards that are 0."""
    if episode.rewards is None:
        return NAN
    rewards = episode.rewards[~np.isnan(episode.rewards.astype(np.float64))]
    return float((rewards == 0).mean()) if len(rewards) else NAN
