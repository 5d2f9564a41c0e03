"""Residuals of networks on episodes that they have not seen, against noise that is known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from learners.residuals import Problem, measure_residuals, out_of_fold
from learners.run import threads
from pipeline.jobs.measure import measure_version
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig, NetworkConfig

STEPS = 50
QUICK = NetworkConfig(folds=2, hidden=(32, 32), epochs=15, batch_size=128, learning_rate=5e-3)


def curved(dims: int, rows: int, noise: float = 0.1) -> tuple[list[Episode], float]:
    """Episodes of a = sin(2 K s) / 2 + noise, s ~ N(0, I), and their true divergence."""
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(4, dims))
    gain /= np.linalg.norm(gain, axis=1, keepdims=True)
    episodes = []
    for number in range(rows // STEPS):
        states = rng.normal(size=(STEPS + 1, dims))
        actions = np.sin(2 * states[:-1] @ gain.T) / 2 + noise * rng.normal(size=(STEPS, 4))
        episodes.append(Episode(f"e{number}", states, actions, truncated=True))  # type: ignore[arg-type]
    std = np.concatenate([e.actions for e in episodes]).std(0)  # type: ignore[misc]
    return episodes, float((noise**2 / std**2).mean())


def stored(path: Path, episodes: list[Episode]) -> Store:
    store = open_store(path, create=True)
    store.append(episodes)
    return store


def test_divergence_of_a_gently_curved_policy(tmp_path: Path) -> None:
    episodes, truth = curved(2, 8_000)
    config = QUICK.model_copy(update={"folds": 4, "hidden": (64, 64)})
    outcome = measure_residuals(stored(tmp_path / "s", episodes).version(), config)
    found = outcome.metrics["action_divergence_x"]
    assert found.value is not None
    assert 1.0 <= found.value / truth <= 1.3
    assert (found.episodes, found.rows, found.coverage) == (160, 8_000, 1.0)
    assert found.standard_error is not None
    assert 0 < found.standard_error < 0.1 * found.value


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("PENSTOCK_LONG") != "1", reason="half a minute; PENSTOCK_LONG=1")
def test_divergence_of_a_curved_policy_of_eight_dims(tmp_path: Path) -> None:
    episodes, truth = curved(8, 40_000)
    outcome = measure_residuals(stored(tmp_path / "s", episodes).version(), NetworkConfig())
    found = outcome.metrics["action_divergence_x"].value
    assert found is not None
    assert 1.0 <= found / truth <= 1.2


def test_diversity_of_a_noisy_system(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(80):
        states = [rng.normal(size=2)]
        actions = rng.normal(size=(STEPS, 1))
        for action in actions:
            shock = 0.05 * rng.normal(size=2)
            states.append(states[-1] + 0.1 * (np.sin(states[-1][::-1]) + action) + shock)
        episodes.append(
            Episode(f"e{number}", np.array(states), actions, truncated=True)  # type: ignore[arg-type]
        )
    truth = 0.5 * 2 * np.log(2 * np.pi * np.e * 0.05**2)
    outcome = measure_residuals(stored(tmp_path / "s", episodes).version(), QUICK)
    found = outcome.metrics["transition_diversity_x"].value
    assert found is not None
    assert -0.05 <= (found - truth) / 2 <= 0.2


def test_scores_are_a_set_of_their_own_and_repeat(tmp_path: Path) -> None:
    episodes, _ = curved(2, 1_000)
    store = stored(tmp_path / "s", episodes)
    measured = measure_version(store, "main", MeasureConfig(metrics=("length", "smoothness")))
    first = measure_residuals(store.version(), QUICK)
    state = first.version.state
    score_set = state.score_sets[first.score_set]
    assert score_set.networks == QUICK
    assert score_set.reference == measured.version.id
    assert set(score_set.metrics) == {"action_divergence_x", "transition_diversity_x"}
    assert state.metrics["smoothness"].score_set == measured.score_set
    again = measure_residuals(store.version(), QUICK)
    assert (again.version.id, again.episodes_scored) == (first.version.id, 0)
    # Metric runs do not take networks for a reference.
    assert measure_version(store, "main", MeasureConfig(metrics=("smoothness",))).score_set == (
        measured.score_set
    )
    # The same seed gives the same numbers elsewhere, another seed others.
    other = stored(tmp_path / "t", episodes)
    same = measure_residuals(other.version(), QUICK).version.episodes()
    found = first.version.episodes()
    for name in score_set.metrics:
        assert found[name].equals(same[name])
    seeded = QUICK.model_copy(update={"seed": 1})
    third = measure_residuals(other.version(), seeded).version.episodes()
    assert not found["action_divergence_x"].equals(third["action_divergence_x"])


def test_networks_have_not_seen_what_they_score() -> None:
    # Targets of pure noise: a network that had seen its rows would fit some of it.
    rng = np.random.default_rng(0)
    problem = Problem(
        x=rng.normal(size=(200, 4)).astype(np.float32),
        y=rng.normal(size=(200, 1)).astype(np.float32),
        scale=np.ones(1),
        owners=np.arange(200),
        folds=np.arange(200) % 2,
        trains=np.ones(200, bool),
    )
    config = QUICK.model_copy(update={"epochs": 150, "batch_size": 50})
    with threads(1):
        unseen, _ = out_of_fold(problem, config)
    assert (unseen**2).mean() > 1.0
    # Were its rows trained on by the other fold's network as well, it would have.
    doubled = Problem(
        x=np.concatenate([problem.x] * 2),
        y=np.concatenate([problem.y] * 2),
        scale=problem.scale,
        owners=np.concatenate([problem.owners] * 2),
        folds=np.concatenate([problem.folds, 1 - problem.folds]),
        trains=np.ones(400, bool),
    )
    with threads(1):
        seen, _ = out_of_fold(doubled, config)
    assert (seen**2).mean() < 0.6


def test_copies_share_a_fold_and_faulty_episodes_have_no_score(tmp_path: Path) -> None:
    episodes, _ = curved(2, 1_000)
    states = np.array(episodes[3].observations["observations"])
    states[:5] = np.nan
    copy = episodes[0].replace(episode_id="copy")
    broken = episodes[3].replace(episode_id="nan", observations={"observations": states})
    outcome = measure_residuals(stored(tmp_path / "s", [*episodes, copy, broken]).version(), QUICK)
    table = outcome.version.episodes(columns=["episode_id", "action_divergence_x"]).to_pydict()
    found = dict(zip(table["episode_id"], table["action_divergence_x"], strict=True))
    assert found["copy"] == pytest.approx(found["e0"], rel=1e-5)
    assert found["nan"] is None
    assert outcome.metrics["action_divergence_x"].episodes == len(found) - 1


def test_scores_go_to_a_head(tmp_path: Path) -> None:
    episodes, _ = curved(2, 500)
    store = stored(tmp_path / "s", episodes)
    store.append([episodes[0].replace(episode_id="later")])
    with pytest.raises(UsageError, match="newest"):
        measure_residuals(store.version("main:1"), QUICK)
