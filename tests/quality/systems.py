"""Synthetic systems with known noise, as episodes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.quality.dataset import dataset_values
from pipeline.quality.duplicates import named_originals
from pipeline.quality.reference import ReferenceModel
from pipeline.quality.score import SIGNATURES, fit_reference, score_episodes
from schemas.episode import Episode
from schemas.metrics import MeasureConfig, MetricValue

STEPS = 50


def linear_policy(
    dims: int, rows: int, seed: int, noise: float = 0.1, offset: float = 0.0
) -> tuple[list[Episode], float]:
    """Episodes of a = K s + noise, s ~ N(0, I), four action dims; and the true divergence."""
    rng = np.random.default_rng(seed)
    gain = rng.normal(size=(4, dims))
    gain /= np.linalg.norm(gain, axis=1, keepdims=True)
    episodes = []
    for number in range(rows // STEPS):
        states = rng.normal(size=(STEPS + 1, dims))
        actions = states[:-1] @ gain.T + noise * rng.normal(size=(STEPS, 4))
        episodes.append(episode(f"e{number}", states + offset, actions + offset))
    std = np.concatenate([e.actions for e in episodes]).std(0)
    return episodes, float((noise**2 / std**2).mean())


def linear_system(
    dims: int, rows: int, seed: int, noise: float = 0.1, offset: float = 0.0
) -> tuple[list[Episode], float]:
    """Episodes of s' = A s + B a + w, w ~ N(0, Q); and the entropy of w in nats."""
    rng = np.random.default_rng(seed)
    drift = 0.9 * np.linalg.qr(rng.normal(size=(dims, dims)))[0]
    drive = 0.3 * rng.normal(size=(dims, 2))
    root = rng.normal(size=(dims, dims))
    covariance = noise**2 * (np.eye(dims) + 0.3 * root @ root.T / dims)
    factor = np.linalg.cholesky(covariance)
    episodes = []
    for number in range(rows // STEPS):
        states = [rng.normal(size=dims)]
        actions = rng.normal(size=(STEPS, 2))
        for action in actions:
            shock = factor @ rng.normal(size=dims)
            states.append(drift @ states[-1] + drive @ action + shock)
        episodes.append(episode(f"e{number}", np.array(states) + offset, actions))
    return episodes, float(0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1])


def episode(name: str, states: np.ndarray, actions: np.ndarray | None, **facts: object) -> Episode:
    """An episode whose last step is truncated, unless the facts say otherwise."""
    facts = {"truncated": True, **facts}
    return Episode(
        episode_id=name,
        observations={"observations": states},
        actions=actions,
        **facts,  # type: ignore[arg-type]
    )


def measure_all(
    episodes: list[Episode], **settings: object
) -> tuple[dict[str, np.ndarray], dict[str, MetricValue], ReferenceModel]:
    """Scores episodes against themselves: columns (NaN for null), dataset values, model."""
    config = MeasureConfig.model_validate({"bootstrap": 20, **settings})
    model = fit_reference(lambda: episodes, config)
    table = score_episodes(episodes, model)
    if SIGNATURES in table.column_names:
        ids, found = table["episode_id"].to_pylist(), table[SIGNATURES].to_pylist()
        copies = pa.array(named_originals(ids, found), pa.string())
        table = table.drop([SIGNATURES]).append_column("duplicate_of", copies)
    tasks = pa.array([e.task for e in episodes], pa.string())
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "episode_id"}
    return columns, dataset_values(table.append_column("task", tasks), model, config), model
