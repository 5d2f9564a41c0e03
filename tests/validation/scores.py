"""Per-episode scores under test, and how their rankings are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, spearmanr

from pipeline.quality.score import fit_reference, score_episodes
from schemas.episode import Episode
from schemas.metrics import MeasureConfig

METRICS = (
    *("action_divergence", "action_variance", "transition_diversity"),
    *("state_similarity", "coverage", "idle_fraction", "smoothness", "length"),
)
HIGHER_IS_BETTER = ("smoothness", "state_similarity")


def badness(episodes: Sequence[Episode], seed: int) -> dict[str, np.ndarray]:
    """Returns scores by name, larger where an episode looks worse; `random` is the control."""
    config = MeasureConfig(metrics=METRICS, seed=seed)
    table = score_episodes(episodes, fit_reference(lambda: episodes, config))
    found = {name: np.asarray(table[name].to_numpy(), np.float64) for name in METRICS}
    for name in HIGHER_IS_BETTER:
        found[name] = -found[name]
    found["random"] = np.random.default_rng([seed, 5]).uniform(size=len(episodes))
    return found


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the probability that a positive scores above a negative; ties count half."""
    kept = np.isfinite(scores)
    scores, positive = scores[kept], positive[kept]
    ranks, ones = rankdata(scores), int(positive.sum())
    zeros = len(scores) - ones
    if not ones or not zeros:
        return float("nan")
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def without_length(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns what a line on log length leaves of the scores."""
    kept = np.isfinite(scores)
    x = np.stack([np.ones(len(lengths)), np.log(lengths)], 1)
    weights, *_ = np.linalg.lstsq(x[kept], scores[kept], rcond=None)
    return np.asarray(scores - x @ weights)


def rank_correlation(scores: np.ndarray, truth: np.ndarray) -> float:
    """Returns Spearman's rho over the episodes that have a score."""
    kept = np.isfinite(scores)
    if np.ptp(scores[kept]) == 0:
        return 0.0
    return float(spearmanr(scores[kept], truth[kept]).statistic)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Returns mean and 95 % bootstrap interval over seeds."""
    found = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(len(found), size=(2_000, len(found)))].mean(1)
    return float(found.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
