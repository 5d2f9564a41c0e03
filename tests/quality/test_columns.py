"""Angles, grippers and embeddings against systems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.quality.columns import circular_variance, moving_columns, wrapped
from pipeline.quality.features import extract
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError
from schemas.metrics import FeatureSpec
from tests.quality.systems import episode, measure_all

MIXING = np.random.default_rng(7).normal(size=(3, 300))


def turning(count: int = 60, noise: float = 0.05, seed: int = 0) -> list[Episode]:
    """A heading that an action turns, with noise; recorded from -pi to pi."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        actions = rng.normal(size=(50, 1))
        shocks = noise * rng.normal(size=(50, 1))
        heading = rng.uniform(-np.pi, np.pi) + np.cumsum(0.3 * actions + shocks, axis=0)
        heading = np.concatenate([heading[:1] - 0.3 * actions[:1] - shocks[:1], heading])
        episodes.append(episode(f"e{number}", wrapped(heading), actions))
    return episodes


def test_the_variance_of_wrapped_angles_is_that_of_their_noise() -> None:
    noisy = wrapped(np.pi + 0.1 * np.random.default_rng(0).normal(size=20_000))
    found = circular_variance(np.cos(noisy).mean(), np.sin(noisy).mean())
    assert found == pytest.approx(0.01, rel=0.03)
    assert noisy.var() > 9  # what a plain variance would say


def test_transitions_of_an_angle_go_round_the_shorter_way() -> None:
    truth = 0.5 * np.log(2 * np.pi * np.e * 0.05**2)
    features = {"angles": ("observations",)}
    _, values, _ = measure_all(
        turning(),
        metrics=(
            "length",
            "transition_diversity",
        ),
        features=features,
    )
    assert values["transition_diversity"].value == pytest.approx(truth, abs=0.03)
    _, naive, _ = measure_all(
        turning(),
        metrics=(
            "length",
            "transition_diversity",
        ),
    )
    assert (naive["transition_diversity"].value or 0) > truth + 1


def test_an_angle_as_action_is_scored_on_the_circle() -> None:
    rng = np.random.default_rng(1)
    episodes = []
    for number in range(80):
        states = rng.uniform(-1, 1, size=(51, 1))
        aimed = np.pi + 0.5 * states[:-1] + 0.1 * rng.normal(size=(50, 1))
        episodes.append(episode(f"e{number}", states, wrapped(aimed)))
    stacked = np.concatenate([e.actions for e in episodes])
    spread = [np.cos(stacked).var(), np.sin(stacked).var()]
    # Noise on an angle is noise on the sine, here of size 1, and a second-order one on the cosine.
    _, values, _ = measure_all(
        episodes,
        metrics=(
            "length",
            "action_divergence",
        ),
        features={"angles": ("actions:0",)},
    )
    rows = extract(episodes[0], FeatureSpec(angles=("actions:0",)))
    assert rows is not None
    assert rows.layout.actions == (
        ("cos actions:0", 1, False),
        ("sin actions:0", 1, False),
    )
    assert values["action_divergence"].value is not None
    assert values["action_divergence"].value < 0.01 / min(spread)
    _, naive, _ = measure_all(
        episodes,
        metrics=(
            "length",
            "action_divergence",
        ),
    )
    assert (naive["action_divergence"].value or 0) > 0.2


def test_relative_angles_are_one_column() -> None:
    states = np.random.default_rng(0).normal(size=(4, 2))
    actions = np.array([[3.1, 0.0], [-3.1, 1.0], [-3.0, 3.0]])
    spec = FeatureSpec(angles=("actions:0",), relative_actions=True)
    found = extract(episode("e", states, actions), spec)
    assert found is not None
    np.testing.assert_allclose(found.targets[1:], [[1.0, 2 * np.pi - 6.2], [2.0, 0.1]])
    assert found.actions.shape == (3, 3)  # as a drive of the system it has cosine and sine
    assert found.acting.tolist() == [False, True, True]


def test_a_named_gripper_is_classes() -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(40):
        states = rng.normal(size=(51, 2))
        closed = np.where(rng.random(50) < 0.25, 1.0, 0.02)
        moves = states[:-1, :1] + 0.1 * rng.normal(size=(50, 1))
        episodes.append(episode(f"e{number}", states, np.column_stack([closed, moves])))
    _, values, _ = measure_all(
        episodes,
        metrics=(
            "length",
            "action_divergence",
        ),
        features={"grippers": ("actions:0",)},
        clusters=1,
    )
    entropy = values["action_divergence"].details["reference"][0]["conditional_entropy"]
    truth = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert entropy == pytest.approx(truth, abs=0.03)
    found = extract(episodes[0], FeatureSpec(grippers=("actions:0",)))
    assert found is not None
    assert found.layout.actions == (("actions", 1, False), ("actions:0", 1, True))
    assert set(np.unique(found.actions[:, 1])) == {0.0, 1.0}


@pytest.mark.parametrize("place", ["observations/picture", "extras"])
def test_an_embedding_is_a_state_whose_changes_are_not_scored(place: str) -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(40):
        hidden = rng.normal(size=(51, 3))
        seen = hidden @ MIXING + 5.0
        pose = rng.normal(size=(51, 2))
        actions = hidden[:-1, :1] + 0.1 * rng.normal(size=(50, 1))
        observations = {"pose": pose}
        extras = {"clip": seen[:-1]}
        if place != "extras":
            observations["picture"], extras = seen, {}
        episodes.append(Episode(f"e{number}", observations, actions, extras=extras))
    features = {
        "observations": ("observations/pose",),
        "embedding": place if place != "extras" else "clip",
        "encoder": "clip-vit-b32@1",
    }
    _, values, model = measure_all(
        episodes, metrics=("length", "action_divergence", "transition_diversity"), features=features
    )
    value = values["action_divergence"].value
    assert value == pytest.approx(0.01 / 1.01, rel=0.1)
    (group,) = model.groups.values()
    assert group.dynamics is not None
    assert group.dynamics.noise.shape == (2, 2)
    assert group.states.predictors <= 64


def test_names_of_columns_are_checked() -> None:
    one = episode("e", np.zeros((3, 2)), np.zeros((2, 1)))
    with pytest.raises(UnknownNameError, match="observations"):
        extract(one, FeatureSpec(angles=("observation",)))
    with pytest.raises(UsageError, match="below 1"):
        extract(one, FeatureSpec(grippers=("actions:1",)))
    with pytest.raises(UnknownNameError, match="extra"):
        extract(one, FeatureSpec(embedding="clip", encoder="x"))
    with pytest.raises(ValidationError, match="encoder"):
        FeatureSpec(embedding="clip")


def test_moving_columns_know_angles_and_embeddings() -> None:
    states = (("pose", 2), ("embedding clip", 3), ("cos pose:2", 1), ("sin pose:2", 1))
    kept = np.array([True, False, True, True, True, False, True])
    assert moving_columns(states, kept).tolist() == [True, False, True]
    assert not len(moving_columns((("embedding clip", 1),), np.ones(1, bool)))
