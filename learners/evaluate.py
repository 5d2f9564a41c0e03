"""How well a policy does: returns over seeded episodes, with intervals and a normalised score.

Policies act deterministically and are judged as they are at the last checkpoint; there is no
choosing among checkpoints here. Copies of the environment move together, and the policy answers all
of them at once; it is always shown as many rows, so that neither the number of copies nor where an
episode stands among them changes any action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from learners.rollout import SLOTS, Actor, Collection, Facts, collect
from learners.scores import bootstrap_interval, normalized_score, wilson_interval
from schemas.errors import ConfigError

EVALUATION_SEED = 1_000_000
"""Far from the seeds of collection, so that nobody is judged on starts it has seen."""
ROWS = 8
"""Rows that a policy is shown at once. Sums of products are made in an order that depends on their
number, not on their place, so with one number a row's result is the same wherever it stands."""


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
    successes: tuple[bool, ...] | None = None
    """Of each episode; None if one does not say."""
    seed: int = EVALUATION_SEED
    """Of the first episode."""

    @property
    def mean_return(self) -> float:
        """Mean over episodes."""
        return float(np.mean(self.returns))

    @property
    def normalized_score(self) -> float | None:
        """D4RL score: 0 is random, 100 is the reference expert; None without references."""
        return normalized_score(self.environment, self.mean_return)

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the success rate; None if an episode does not say."""
        if self.successes is None:
            return None
        return wilson_interval(sum(self.successes), len(self.successes))


def evaluate(
    actor: Actor,
    environment: str,
    episodes: int = 10,
    seed: int = EVALUATION_SEED,
    copies: int = SLOTS,
    report: Callable[[int], None] | None = None,
) -> Evaluation:
    """Plays whole episodes without exploration.

    Args:
        actor: what acts.
        environment: a registered Gymnasium name.
        episodes: how many; episode k starts from seed `seed + k`.
        seed: of the first episode.
        copies: of the environment, moving together in this process; they change no return.
        report: told how many episodes are done.

    Raises:
        UnknownNameError: if the environment is not registered.
        ConfigError: if it has no box of actions, or `copies` is not positive.
    """
    if copies < 1:
        raise ConfigError(f"Expected at least one copy of the environment, came {copies}.")
    plan = Collection(environment, episodes=episodes, seed=seed, slots=copies, rows=ROWS)
    played = []
    for episode in collect(actor, plan, Facts(namespace="evaluation")):
        played.append((episode.episode_return, episode.length, episode.success))
        if report is not None:
            report(len(played))
    returns = np.array([gained for gained, _, _ in played], np.float64)
    said = [success for _, _, success in played if success is not None]
    return Evaluation(
        environment=environment,
        returns=tuple(returns.tolist()),
        lengths=tuple(length for _, length, _ in played),
        success=float(np.mean(said)) if said else None,
        interval=bootstrap_interval(returns, seed),
        successes=tuple(said) if len(said) == len(played) else None,
        seed=seed,
    )
