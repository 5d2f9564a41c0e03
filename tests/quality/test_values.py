"""Values of a version as a whole against closed forms."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.quality.dataset import dataset_values
from pipeline.quality.reference import from_arrays
from pipeline.quality.score import VISITED, fit_reference, score_episodes
from pipeline.quality.sketches import COUNT_ERROR
from pipeline.quality.values import (
    by_group,
    return_improvement,
    return_spread,
    return_values,
    trajectory_quality,
)
from schemas.episode import Episode
from schemas.metrics import MeasureConfig, MetricValue
from tests.quality.systems import episode, linear_policy


def values_of(
    episodes: list[Episode], judged: list[Episode] | None = None
) -> dict[str, MetricValue]:
    config = MeasureConfig(metrics=("length", "saco"), bootstrap=20)
    model = fit_reference(lambda: episodes, config)
    model = from_arrays(*model.to_arrays())
    return dataset_values(score_episodes(judged or episodes, model), model, config)


def test_return_spread_of_a_gaussian_is_half_its_variance() -> None:
    returns = np.random.default_rng(0).normal(5.0, 2.0, size=100_000)
    assert return_spread(returns) == pytest.approx(2.0, rel=0.02)
    flips = (np.random.default_rng(0).random(200_000) < 0.1).astype(float)
    assert return_spread(flips) == pytest.approx(0.1 * 0.9**2, rel=0.02)


def test_values_of_returns_at_their_edges() -> None:
    assert return_improvement(np.array([1.0, 3.0])) == 0.5
    assert return_improvement(np.array([-3.0, -1.0])) == 0.5
    assert return_improvement(np.array([-1.0, 1.0])) == pytest.approx(1e8)
    assert return_improvement(np.array([7.0])) == return_spread(np.array([7.0])) == 0.0
    assert trajectory_quality(np.array([10.0, 30.0]), 0.0, 40.0) == 0.5
    assert trajectory_quality(np.array([-5.0]), -10.0, -20.0) == -0.5
    for low, high in ((None, 1.0), (1.0, None), (1.0, 1.0)):
        assert np.isnan(trajectory_quality(np.ones(3), low, high))
    nothing = np.zeros(0)
    assert np.isnan([return_spread(nothing), return_improvement(nothing)]).all()


def test_unknown_returns_are_left_out_and_counted() -> None:
    config = MeasureConfig(return_random=0.0, return_expert=10.0)
    returns = np.array([2.0, np.nan, 4.0, np.inf])
    found = return_values(returns, np.full(4, 5.0), config)
    quality = found["trajectory_quality"]
    assert quality.value == pytest.approx(0.3)
    assert (quality.episodes, quality.coverage, quality.rows) == (2, 0.5, 10)
    assert quality.details["returns_left_out"] == 2
    assert found["return_spread"].value == pytest.approx(0.5)
    none = return_values(np.full(3, np.nan), np.ones(3), config)
    assert all(value.value is None and value.episodes == 0 for value in none.values())


def test_standard_errors_of_returns_are_those_of_new_episodes() -> None:
    config = MeasureConfig(return_random=0.0, return_expert=10.0, bootstrap=400)
    rng = np.random.default_rng(0)
    draws = rng.normal(5.0, 2.0, size=(300, 80))
    found = return_values(draws[0], np.ones(80), config)
    truth = np.std([return_spread(row) for row in draws])
    assert found["return_spread"].standard_error == pytest.approx(truth, rel=0.4)
    assert found["trajectory_quality"].standard_error == pytest.approx(0.2 / 80**0.5, rel=0.25)


def grid(side: int, repeats: int) -> list[Episode]:
    """Every cell of a grid of states, each visited a few times, one row of cells per episode."""
    line = np.arange(side, dtype=float)
    row = np.tile(line, repeats)
    return [
        episode(
            f"e{y}",
            np.append(np.column_stack([row, np.full(len(row), y)]), [[0, 0]], axis=0),
            np.zeros((len(row), 1)),
        )
        for y in line
    ]


def test_a_grid_of_known_size_is_counted() -> None:
    episodes = grid(60, 3)
    values = values_of(episodes)
    error = 3 * COUNT_ERROR
    assert values["unique_share"].details["distinct"] == pytest.approx(3_600, rel=error)
    assert values["unique_share"].value == pytest.approx(1 / 3, rel=error)
    assert values["saco"].value == pytest.approx(1.0, rel=1e-9)
    half = values_of(episodes, episodes[:30])
    assert half["saco"].value == pytest.approx(0.5, rel=error)
    assert half["saco"].standard_error is not None
    bins = values["unique_share"].details["reference"][0]
    assert bins["dims"] == 2  # the action never changes
    assert bins["bins_hit"] == [0.6, 0.6]


def test_copies_visit_nothing_new() -> None:
    episodes, _ = linear_policy(3, 2_000, 0)
    again = [e.replace(episode_id=f"again {e.episode_id}") for e in episodes]
    once, twice = values_of(episodes), values_of(episodes, [*episodes, *again])
    assert twice["saco"].value == pytest.approx(once["saco"].value, rel=1e-9)
    assert twice["unique_share"].value == pytest.approx((once["unique_share"].value or 0) / 2)


def test_many_dims_are_binned_on_principal_components() -> None:
    episodes, _ = linear_policy(12, 3_000, 0)
    values = values_of(episodes)
    bins = values["unique_share"].details["reference"][0]
    assert (bins["dims"], bins["reduced"]) == (8, True)
    assert values["unique_share"].value == pytest.approx(1.0, rel=3 * COUNT_ERROR)
    shifted, _ = linear_policy(12, 3_000, 0, offset=100.0)
    beyond = values_of(episodes, shifted)["unique_share"].value
    assert beyond is not None
    assert beyond < 0.01  # all of it lies beyond the limits, in one corner


def test_groups_have_values_of_their_own() -> None:
    found = by_group(
        np.array([1.0, 3.0, 5.0, np.nan]), np.array([1.0, 3.0, 1, 1]), ["a", "a", "b", ""]
    )
    assert found["a"]["value"] == 2.5
    assert found["a"]["episodes"] == 2
    assert found["b"] == {"value": 5.0, "standard_error": None, "episodes": 1}
    episodes, _ = linear_policy(2, 1_000, 0)
    config = MeasureConfig(metrics=("length",))
    model = fit_reference(lambda: episodes, config)
    scores = score_episodes(episodes, model)
    names = pa.array(["p", None] * (len(episodes) // 2), pa.string())
    values = dataset_values(scores.append_column("operator", names), model, config)
    assert values["length"].details["groups"]["operator"]["p"]["value"] == 50.0
    assert VISITED not in scores.column_names
