"""Intervals against formulas, and against how often they hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from learners.scores import (
    band,
    iqm,
    normalized_score,
    spread,
    stratified_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (10, 10), (47, 50)])
def test_wilsons_interval_is_scipys(successes: int, episodes: int) -> None:
    expected = binomtest(successes, episodes).proportion_ci(method="wilson")
    found = wilson_interval(successes, episodes)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_middle_half_of_seeds() -> None:
    assert iqm(np.array([100.0, 1.0, 2.0, 3.0, -50.0])) == 2.0
    assert iqm(np.array([7.0])) == 7.0


def test_references_are_of_the_environment_that_was_measured() -> None:
    assert normalized_score("maze2d-umaze-v1", 161.86) == pytest.approx(100.0)
    assert normalized_score("maze2d-large-dense-v1", 30.569041) == 0.0
    assert normalized_score("PointMaze_UMaze-v3", 100.0) is None


def test_an_interval_over_five_seeds_holds_the_truth_as_often_as_it_says() -> None:
    """Seeds differ by more than their episodes do, where plain percentiles hold it in 82 %."""
    random = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        seeds = random.normal(size=(5, 1))
        low, high = stratified_interval(seeds + random.normal(size=(5, 20)), trial, resamples=500)
        held += low <= 0 <= high
    assert held / 300 > 0.91


def test_more_seeds_say_more_than_more_episodes() -> None:
    random = np.random.default_rng(1)
    seeds = random.normal(size=(40, 1))

    def width(count: int, episodes: int) -> float:
        values = seeds[:count] + random.normal(size=(count, episodes))
        low, high = stratified_interval(values)
        return high - low

    assert width(40, 10) < width(10, 10) / 1.5
    assert width(10, 400) > width(10, 10) / 1.5


def test_a_spread_repeats_and_adds_up() -> None:
    values = np.random.default_rng(2).normal(50.0, 10.0, (6, 8))
    found = spread(values, seed=3)
    assert found == spread(values, seed=3)
    assert found.mean == pytest.approx(values.mean())
    assert found.seeds == pytest.approx(values.mean(axis=1))
    assert found.interval[0] < found.mean < found.interval[1]
    assert found.iqm_interval[0] < found.iqm < found.iqm_interval[1]
    assert spread(np.full((3, 4), 2.0)).interval == (2.0, 2.0)
    assert spread(values[:1]).interval != (found.mean, found.mean)


def test_a_band_is_the_interval_over_seeds_at_each_point() -> None:
    values = np.random.default_rng(4).normal(size=(6, 3)) * [1.0, 2.0, 0.0]
    found = band(values, resamples=20_000)
    for point in range(3):
        expected = stratified_interval(values[:, [point]], resamples=20_000)
        assert found[point] == pytest.approx(expected, abs=0.05)
    assert np.isnan(band(values[:1])).all()
