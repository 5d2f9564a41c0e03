"""The estimators against analytic ground truths."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.action import horizon_weighted
from pipeline.quality.features import extract
from schemas.metrics import FeatureSpec
from tests.quality.systems import STEPS, episode, linear_policy, linear_system, measure_all


@pytest.mark.parametrize(("dims", "rows"), [(2, 1000), (4, 1000), (8, 1000), (8, 10_000)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_divergence_of_a_linear_policy_is_its_noise_variance(
    dims: int, rows: int, seed: int
) -> None:
    episodes, truth = linear_policy(dims, rows, seed)
    columns, values, _ = measure_all(episodes)
    found = values["action_divergence"]
    assert found.value is not None
    assert 0.95 <= found.value / truth <= 1.05
    assert 0.95 <= found.details["reference"][0]["value"] / truth <= 1.05
    assert found.value == pytest.approx(columns["action_divergence"].mean())
    assert columns["action_divergence"].std() < 0.3 * truth


@pytest.mark.parametrize("rows", [1000, 10_000])
def test_divergence_keeps_its_calibration_in_16_dims(rows: int) -> None:
    episodes, truth = linear_policy(16, rows, 0)
    value = measure_all(episodes)[1]["action_divergence"].value
    assert value is not None
    assert 0.93 <= value / truth <= 1.07


def test_divergence_of_a_curved_policy_is_local() -> None:
    rng = np.random.default_rng(0)
    gain = np.array([[0.8, 0.6], [-0.6, 0.8]])
    episodes = []
    for number in range(200):
        states = rng.normal(size=(STEPS + 1, 2))
        actions = np.sin(2 * states[:-1] @ gain.T) / 2 + 0.1 * rng.normal(size=(STEPS, 2))
        episodes.append(episode(f"e{number}", states, actions))
    truth = float((0.01 / np.concatenate([e.actions for e in episodes]).var(0)).mean())
    found = measure_all(episodes)[1]["action_divergence"]
    assert found.value is not None
    assert 0.97 <= found.details["reference"][0]["value"] / truth <= 1.05
    assert 0.97 <= found.value / truth <= 1.10  # unseen episodes meet the misfit at edges


def test_divergence_reports_raw_units() -> None:
    episodes, _ = linear_policy(4, 5000, 0)
    rmse = measure_all(episodes)[1]["action_divergence"].details["reference"][0]["rmse"]
    np.testing.assert_allclose(rmse, 0.1, rtol=0.05)


def test_variance_is_the_spread_inside_clusters() -> None:
    episodes, truth = linear_policy(4, 5000, 0)
    _, values, model = measure_all(episodes)
    (group,) = model.groups.values()
    states = np.concatenate([e.observations["observations"][:-1] for e in episodes])
    actions = np.concatenate([e.actions for e in episodes])
    points = group.states.points(group.states.predict_from(states))
    labels = ((points[:, None] - group.centroids) ** 2).sum(2).argmin(1)
    scaled = (actions - actions.mean(0)) / actions.std(0)
    inside = [scaled[labels == c] for c in range(len(group.centroids))]
    direct = sum(((part - part.mean(0)) ** 2).sum() for part in inside if len(part))
    found = values["action_variance"]
    assert found.details["reference"][0]["value"] == pytest.approx(direct / 5000 / 4, rel=1e-9)
    assert found.value == pytest.approx(direct / 5000 / 4, rel=0.06)
    assert found.value is not None
    assert found.value > 5 * truth  # it mostly reads state spread


@pytest.mark.parametrize(
    ("dims", "rows", "tolerance"),
    [(2, 1000, 0.03), (4, 1000, 0.03), (8, 1000, 0.03), (8, 10_000, 0.01)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_transition_diversity_of_a_linear_system_is_its_entropy(
    dims: int, rows: int, tolerance: float, seed: int
) -> None:
    episodes, truth = linear_system(dims, rows, seed)
    columns, values, _ = measure_all(episodes)
    found = values["transition_diversity"]
    assert found.value == pytest.approx(truth, abs=tolerance * dims)
    assert found.details["reference"][0]["value"] == pytest.approx(truth, abs=tolerance * dims)
    assert found.value == pytest.approx(columns["transition_diversity"].mean())


def test_transition_diversity_orders_noise_levels() -> None:
    quiet = measure_all(linear_system(2, 2000, 0, noise=0.005)[0])[1]["transition_diversity"]
    loud = measure_all(linear_system(2, 2000, 0, noise=0.02)[0])[1]["transition_diversity"]
    assert quiet.value is not None
    assert loud.value is not None
    assert loud.value - quiet.value == pytest.approx(2 * np.log(4), abs=0.1)


def test_offsets_of_a_million_change_nothing() -> None:
    near, truth = linear_policy(4, 1000, 0)
    far, _ = linear_policy(4, 1000, 0, offset=1e6)
    assert measure_all(far)[1]["action_divergence"].value == pytest.approx(truth, rel=0.05)
    # Clusters hang on the rows' hashes, so a comparison row by row takes one cluster.
    at_zero, shifted = measure_all(near, clusters=1)[0], measure_all(far, clusters=1)[0]
    for name in ("action_variance", "action_divergence", "transition_diversity"):
        np.testing.assert_allclose(shifted[name], at_zero[name], rtol=1e-5)
    system, entropy = linear_system(4, 1000, 0, offset=1e6)
    assert measure_all(system)[1]["transition_diversity"].value == pytest.approx(entropy, abs=0.12)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_horizon_weights_of_a_constant_divergence_are_exact(steps: int) -> None:
    delta = 0.375
    early = np.arange(steps, 0, -1).astype(np.float64)
    zeros = np.zeros(steps, np.int64)
    found = horizon_weighted(np.full(steps, delta), early, zeros, np.array([steps]))
    assert found[0] == delta * (steps + 1) / 2


def test_horizon_weights_count_early_steps_most() -> None:
    early = np.array([4.0, 3.0, 2.0, 1.0, 4.0, 3.0, 2.0, 1.0])
    owners, lengths = np.repeat([0, 1], 4), np.array([4, 4])
    divergence = np.array([1.0, 0, 0, 0, 0, 0, 0, 1.0])
    np.testing.assert_allclose(horizon_weighted(divergence, early, owners, lengths), [1.0, 0.25])


def test_a_noisier_episode_scores_its_own_noise_and_leaves_the_others_alone() -> None:
    episodes, _ = linear_policy(4, 2000, 0)
    clean = measure_all(episodes)[0]["action_divergence"]
    rng = np.random.default_rng(1)
    noisy = episodes[3].replace(actions=episodes[3].actions + rng.normal(size=(STEPS, 4)))
    changed = [*episodes[:3], noisy, *episodes[4:]]
    scores = measure_all(changed)[0]["action_divergence"]
    scale = np.concatenate([e.actions for e in changed]).var(0)
    assert scores[3] == pytest.approx((1.01 / scale).mean(), rel=0.25)
    assert np.delete(scores, 3).max() < 0.2 * scores[3]
    assert np.corrcoef(np.delete(scores, 3), np.delete(clean, 3))[0, 1] > 0.85


def test_relative_actions_score_differences() -> None:
    episodes, _ = linear_policy(2, 1000, 0)
    ramp = [e.replace(actions=np.cumsum(e.actions, axis=0)) for e in episodes]
    plain = measure_all(ramp)[1]["action_divergence"].value
    relative = measure_all(ramp, features=FeatureSpec(relative_actions=True))[1]
    found = extract(ramp[0], FeatureSpec(relative_actions=True))
    assert found is not None
    assert not found.acting[0]
    assert found.acting[1:].all()
    np.testing.assert_allclose(found.targets[1:], episodes[0].actions[1:], atol=1e-12)
    assert plain is not None
    value = relative["action_divergence"].value
    assert value is not None
    assert value < 0.1 * plain
