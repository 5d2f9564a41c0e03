"""Familiar states and copied episodes against data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.duplicates import named_originals, originals
from pipeline.quality.score import SIGNATURES, fit_reference, score_episodes
from pipeline.quality.surroundings import readings, surroundings
from schemas.episode import Episode
from schemas.metrics import MeasureConfig
from tests.quality.systems import measure_all


def gaussian(dims: int, episodes: int = 100, steps: int = 100, seed: int = 0) -> list[Episode]:
    """Independent states ~ N(0, I): no step knows its episode."""
    rng = np.random.default_rng(seed)
    return [
        Episode(
            f"e{k}",
            rng.normal(size=(steps + 1, dims)),
            rng.normal(size=(steps, 2)),
            truncated=True,
        )
        for k in range(episodes)
    ]


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_coverage_of_a_gaussian_is_its_entropy(dims: int) -> None:
    _, values, _ = measure_all(gaussian(dims), metrics=("length", "coverage"))
    truth = 0.5 * dims * np.log(2 * np.pi * np.e)
    assert values["coverage"].value == pytest.approx(truth, abs=0.05 * dims)


def test_similarity_is_the_share_within_the_radius() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 2))
    owners = np.repeat(np.arange(20, dtype=np.uint64), 20)
    known = surroundings(points, owners)
    assert known is not None
    similarity, _ = readings(known, points, owners)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    others = owners[:, None] != owners[None]
    truth = ((gaps <= known.radius) & others).sum(1) / others.sum(1)
    np.testing.assert_allclose(similarity, truth)
    # The radius is the median distance to the 16th nearest of other episodes.
    nearest = np.sort(np.where(others, gaps, np.inf), axis=1)[:, 15]
    assert float(known.radius) == pytest.approx(np.median(nearest))


def test_a_stranger_is_compared_with_everybody() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(200, 3))
    known = surroundings(points, np.repeat(np.arange(10, dtype=np.uint64), 20))
    assert known is not None
    similarity, surprise = readings(known, np.zeros((1, 3)), np.array([99], np.uint64))
    assert similarity[0] == (np.linalg.norm(points, axis=1) <= known.radius).mean()
    _, far = readings(known, np.full((1, 3), 9.0), np.array([99], np.uint64))
    assert far[0] > surprise[0]


def test_too_few_states_have_no_surroundings() -> None:
    assert surroundings(np.zeros((10, 2)), np.arange(10, dtype=np.uint64)) is None
    assert surroundings(np.zeros((100, 2)), np.zeros(100, np.uint64)) is None
    columns, values, _ = measure_all(gaussian(2, episodes=1), metrics=("length", "coverage"))
    assert np.isnan(columns["coverage"]).all()
    assert values["coverage"].value is None


def walks(count: int, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        states = rng.normal(size=(61, 4)).cumsum(0)
        found.append(Episode(f"e{k}", states, np.diff(states, axis=0)[:, :2], truncated=True))
    return found


def noisy(episode: Episode, name: str, size: float, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    states = episode.observations["observations"]
    actions = episode.flat_actions["actions"]
    return Episode(
        name,
        states + size * rng.normal(size=states.shape) * states.std(0),
        actions + size * rng.normal(size=actions.shape) * actions.std(0),
        truncated=True,
    )


@pytest.mark.parametrize("size", [0.0, 0.005])
def test_copies_are_found_each_of_them_and_nothing_else(size: float) -> None:
    own = walks(40)
    copies = [noisy(own[3 * k], f"copy{k}", size, k) for k in range(7)]
    columns, values, _ = measure_all([*own, *copies], metrics=("length", "duplicate_of"))
    assert list(columns["duplicate_of"][40:]) == [f"e{3 * k}" for k in range(7)]
    assert set(columns["duplicate_of"][:40]) == {None}
    assert values["duplicate_of"].value == 7 / 47


def test_similar_demonstrations_are_not_copies() -> None:
    own = walks(20)
    near = [noisy(e, f"near{k}", 0.3, k) for k, e in enumerate(own)]
    columns, _, _ = measure_all([*own, *near], metrics=("length", "duplicate_of"))
    assert set(columns["duplicate_of"]) == {None}


def test_the_first_of_several_equal_episodes_stands_for_all() -> None:
    one, two = walks(2)
    episodes = [one, two, one.replace(episode_id="again"), one.replace(episode_id="third")]
    model = fit_reference(lambda: walks(30), MeasureConfig(metrics=("duplicate_of",)))
    found = score_episodes(episodes, model)[SIGNATURES].to_pylist()
    assert named_originals([e.episode_id for e in episodes], found) == [None, None, "e0", "e0"]
    assert originals([None, found[0], None, found[0]]) == [None, None, None, 1]
    assert originals([]) == []
