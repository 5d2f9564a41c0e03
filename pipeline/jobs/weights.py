"""Weights of a version's episodes, as a table that labels can be made of, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.quality.features import Layout, extract
from pipeline.quality.weights import (
    ValueMoments,
    Weighting,
    advantage_weights,
    rank_weights,
    returns_to_go,
    softmax_weights,
)
from pipeline.store.reader import Version
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.metrics import FeatureSpec

KINDS = ("awr", "returns", "advantages", "quality")


@dataclass(frozen=True)
class EpisodeWeights:
    """Weights of episodes, and how many equal ones they are worth."""

    table: pa.Table
    """`episode_id` and `weight` (float64), in the version's order; 0 where nothing is known."""
    episodes: int
    """Episodes whose weight is not 0."""
    effective: float
    """Effective sample size, in episodes."""
    largest_share: float
    steps_effective: float | None
    """For `awr`, whose weights are of steps: their effective sample size, in steps."""


def episode_weights(
    version: Version,
    kind: str,
    *,
    temperature: float = 0.1,
    discount: float = 1.0,
    metric: str = "action_divergence",
    higher_is_better: bool = False,
    gamma: float = 1.0,
    features: FeatureSpec | None = None,
) -> EpisodeWeights:
    """Returns a weight for every episode of a version.

    Args:
        version: whose episodes.
        kind: `awr`, the mean weight of the episode's steps by exponentiated advantage; `returns`
            or `advantages`, a softmax over episodes; `quality`, by the rank of a metric.
        temperature: of the exponentials; for `awr` in standard deviations of the advantage.
        discount: of the returns to go of `awr`.
        metric: column that `quality` ranks by.
        higher_is_better: of that metric.
        gamma: exponent of the ranks.
        features: which fields are the state of the linear value.

    Raises:
        UnknownNameError: for an unknown kind or metric.
        UsageError: for a temperature that is not positive.
    """
    if kind not in KINDS:
        raise UnknownNameError(f"Expected a kind of weights, came {kind!r}; {suggest(kind, KINDS)}")
    if temperature <= 0:
        raise UsageError(f"Expected a temperature above 0, came {temperature}.")
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    steps_effective = None
    if kind == "quality":
        found = rank_weights(_numbers(version, metric), gamma, higher_is_better=higher_is_better)
    elif kind == "returns":
        found = softmax_weights(_numbers(version, "episode_return"), temperature)
    elif kind == "advantages":
        gains = _advantages(version, features or FeatureSpec(), 1.0, is_first_only=True)
        found = softmax_weights(
            _in_order(ids, {n: float(g[0]) for n, g in gains.items()}), temperature
        )
    else:
        gains = _advantages(version, features or FeatureSpec(), discount, is_first_only=False)
        found, steps_effective = _by_advantage(ids, gains, temperature)
    return EpisodeWeights(
        table=pa.table({"episode_id": ids, "weight": pa.array(found.weights, pa.float64())}),
        episodes=int((found.weights > 0).sum()),
        effective=found.effective,
        largest_share=found.largest_share,
        steps_effective=steps_effective,
    )


def _by_advantage(
    ids: pa.ChunkedArray, gains: dict[str, np.ndarray], temperature: float
) -> tuple[Weighting, float]:
    """Mean weight of each episode's steps, and the steps' effective sample size."""
    every = np.concatenate([*gains.values(), np.zeros(0)])
    spread = float(np.nanstd(every)) if np.isfinite(every).any() else 0.0
    beta = temperature * spread or 1.0
    steps = {name: advantage_weights(gain, beta).weights for name, gain in gains.items()}
    means = {name: float(weights.mean()) for name, weights in steps.items() if len(weights)}
    weights = np.nan_to_num(_in_order(ids, means))
    return Weighting(weights), Weighting(np.concatenate([*steps.values(), np.zeros(0)])).effective


def _advantages(
    version: Version, spec: FeatureSpec, discount: float, *, is_first_only: bool
) -> dict[str, np.ndarray]:
    """Returns G_t - V(s_t) by episode, V fitted per layout; read twice."""
    moments: dict[Layout, ValueMoments] = {}
    for _, layout, states, returns in _returns(version, spec, discount, is_first_only):
        part = ValueMoments.of(states, returns)
        moments[layout] = moments[layout].merge(part) if layout in moments else part
    values = {layout: one.fit() for layout, one in moments.items()}
    return {
        name: returns - values[layout].of(states)
        for name, layout, states, returns in _returns(version, spec, discount, is_first_only)
    }


def _returns(
    version: Version, spec: FeatureSpec, discount: float, is_first_only: bool
) -> Iterator[tuple[str, Layout, np.ndarray, np.ndarray]]:
    """Yields id, layout, states (n, S) and returns to go (n,) of the episodes that have them."""
    for episode in version.iter_episodes():
        found = extract(episode, spec)
        if found is None or episode.rewards is None:
            continue
        returns = returns_to_go(_floats(episode), discount)
        count = 1 if is_first_only else len(returns)
        yield episode.episode_id, found.layout, found.states[:count], returns[:count]


def _floats(episode: Episode) -> np.ndarray:
    return np.asarray(episode.rewards, np.float64)


def _numbers(version: Version, column: str) -> np.ndarray:
    values = version.episodes(columns=[column])[column].cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _in_order(ids: pa.ChunkedArray, found: dict[str, float]) -> np.ndarray:
    return np.array([found.get(name, np.nan) for name in ids.to_pylist()])
