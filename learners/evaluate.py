"""How well a policy does: returns over seeded episodes, with an interval and a normalised score.

Policies act deterministically and are judged as they are at the last checkpoint; there is no
choosing among checkpoints here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.rollout import Actor, Collection, Facts, collect

EVALUATION_SEED = 1_000_000
"""Far from the seeds of collection, so that nobody is judged on starts it has seen."""

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "Ant": (-325.6, 3879.7),
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
}
"""Random and expert return by environment name without its version: D4RL's references, which were
measured on the -v2 environments."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of one policy in one environment."""

    environment: str
    returns: tuple[float, ...]
    """Undiscounted, in the order of the seeds."""
    lengths: tuple[int, ...]
    """Steps."""
    success: float | None
    """Share of successful episodes where the environment says so."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean return."""

    @property
    def mean_return(self) -> float:
        """Mean over episodes."""
        return float(np.mean(self.returns))

    @property
    def normalized_score(self) -> float | None:
        """D4RL score: 0 is random, 100 is the reference expert; None without references."""
        return normalized_score(self.environment, self.mean_return)


def evaluate(
    actor: Actor, environment: str, episodes: int = 10, seed: int = EVALUATION_SEED
) -> Evaluation:
    """Plays whole episodes without exploration.

    Args:
        actor: what acts.
        environment: a registered Gymnasium name.
        episodes: how many; episode k starts from seed `seed + k`.
        seed: of the first episode.
    """
    plan = Collection(environment, episodes=episodes, seed=seed)
    played = list(collect(actor, plan, Facts(namespace="evaluation")))
    returns = np.array([episode.episode_return for episode in played], np.float64)
    successes = [episode.success for episode in played if episode.success is not None]
    return Evaluation(
        environment=environment,
        returns=tuple(returns.tolist()),
        lengths=tuple(episode.length for episode in played),
        success=float(np.mean(successes)) if successes else None,
        interval=bootstrap_interval(returns, seed),
    )


def normalized_score(environment: str, mean_return: float) -> float | None:
    """Returns 100 (G - random) / (expert - random), or None where no references are known."""
    base, _, _ = environment.rpartition("-v")
    if base not in REFERENCE_RETURNS:
        return None
    random, expert = REFERENCE_RETURNS[base]
    return 100.0 * (mean_return - random) / (expert - random)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, level: float = 0.95, resamples: int = 2000
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
