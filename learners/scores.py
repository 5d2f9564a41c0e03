"""How sure a score is: intervals of rates, of returns over episodes, and over seeds and episodes.

A policy that was trained once says little of the next training, so scores of several seeds are
resampled by seed first (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice"). With few seeds plain percentiles of such a bootstrap are too narrow: over
five, they covered 82 to 85 % where 95 % was said. They are taken further out here (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", on expanded percentiles).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student
from scipy.stats import trim_mean

LEVEL = 0.95
RESAMPLES = 2000
_MAX_CELLS = 2_000_000
"""Episodes drawn at once while resampling."""

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "Ant": (-325.6, 3879.7),
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
}
"""Random and expert return by environment name without its version: D4RL's references
(`d4rl/infos.py`). Those of locomotion were measured on the -v2 environments. PointMaze has none:
its dynamics and lengths are not those of maze2d, and D4RL measured only the latter."""


def normalized_score(environment: str, mean_return: float) -> float | None:
    """Returns 100 (G - random) / (expert - random), or None where no references are known."""
    base, _, _ = environment.rpartition("-v")
    if base not in REFERENCE_RETURNS:
        return None
    random, expert = REFERENCE_RETURNS[base]
    return 100.0 * (mean_return - random) / (expert - random)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean.

    Args:
        values: (N,) one number per episode.
        seed: of the resamples.
        level: coverage.
        resamples: how many.
    """
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), (resamples, len(values)))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values[picks].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: int, episodes: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns Wilson's score interval of a rate (1927), which is one at 0 and at 1, too.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Args:
        successes: from 0 to `episodes`.
        episodes: at least 1.
        level: coverage.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, n = successes / episodes, episodes
    centre = rate + z * z / (2 * n)
    half = z * float(np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def iqm(seeds: np.ndarray) -> np.ndarray:
    """Returns the mean of the middle half of the seeds' scores, (..., K) to (...)."""
    return np.asarray(trim_mean(seeds, 0.25, axis=-1))


@dataclass(frozen=True)
class Spread:
    """A score over several seeds."""

    mean: float
    """Of the seeds' means."""
    interval: tuple[float, float]
    """95 %, over seeds and episodes; over episodes alone where there is one seed."""
    iqm: float
    """Mean of the middle half of the seeds."""
    iqm_interval: tuple[float, float]
    seeds: tuple[float, ...]
    """Mean of each seed."""


def spread(values: np.ndarray, seed: int = 0) -> Spread:
    """Summarises last scores of several seeds.

    Args:
        values: (K, N) one row per seed, one number per episode.
        seed: of the resamples.
    """
    seeds = values.mean(axis=1)
    return Spread(
        mean=float(seeds.mean()),
        interval=stratified_interval(values, seed),
        iqm=float(iqm(seeds)),
        iqm_interval=stratified_interval(values, seed, iqm),
        seeds=tuple(seeds.tolist()),
    )


def stratified_interval(
    values: np.ndarray,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Returns the bootstrap interval over seeds, and over episodes within each seed drawn.

    The percentiles are those at which the interval of a plain mean would have Student's width:
    Phi(-sqrt(K/(K-1)) t), so that few seeds do not look like many.

    Args:
        values: (K, N) one row per seed, one number per episode: scores, or paired differences.
        seed: of the resamples.
        statistic: of the seeds' means, (..., K) to (...); their mean, if not given.
        level: coverage.
        resamples: how many.
    """
    K, N = values.shape
    generator = np.random.default_rng(seed)
    summary = statistic or _mean
    found = []
    at_once = max(1, _MAX_CELLS // (K * N))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = generator.integers(0, K, (count, K, 1))
        episodes = generator.integers(0, N, (count, K, N))
        found.append(summary(values[drawn, episodes].mean(axis=-1)))
    tail = 100.0 * _tail(K, level)
    low, high = np.percentile(np.concatenate(found), [tail, 100.0 - tail])
    return float(low), float(high)


def band(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Returns 95 % intervals over seeds, one for each point of their curves.

    Args:
        values: (K, P) one curve per seed.
        seed: of the resamples, which are common to all points.
        resamples: how many.

    Returns:
        (P, 2) float64; NaN where there is one seed.
    """
    K, P = values.shape
    if K == 1:
        return np.full((P, 2), np.nan)
    drawn = np.random.default_rng(seed).integers(0, K, (resamples, K))
    counts = (drawn[:, :, None] == np.arange(K)).sum(axis=1)
    tail = 100.0 * _tail(K, LEVEL)
    return np.asarray(np.percentile(counts @ values / K, [tail, 100.0 - tail], axis=0).T)


def _mean(seeds: np.ndarray) -> np.ndarray:
    return np.asarray(seeds.mean(axis=-1))


def _tail(seeds: int, level: float) -> float:
    """Probability on either side of an interval over so many seeds."""
    if seeds == 1:
        return (1.0 - level) / 2
    width = float(student.ppf(0.5 + level / 2, seeds - 1))
    return NormalDist().cdf(-float(np.sqrt(seeds / (seeds - 1))) * width)
