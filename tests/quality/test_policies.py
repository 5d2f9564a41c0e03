"""Divergence of policies and information of actions against Gaussian truths."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.information import pointwise_information
from pipeline.quality.moments import CrossMoments, measure, merge
from pipeline.quality.policies import policy_divergence


def demonstrator(gain: np.ndarray, noise: float, rows: int, seed: int) -> CrossMoments:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, len(gain)))
    actions = states @ gain + noise * rng.normal(size=(rows, gain.shape[1]))
    return measure(states, actions, np.zeros(rows, np.int64), 1)


@pytest.mark.parametrize(("rows", "close"), [(1_000, 0.10), (5_000, 0.035), (20_000, 0.02)])
@pytest.mark.parametrize(("turn", "noise_p"), [(0.05, 0.1), (0.2, 0.1), (0.2, 0.2), (0.0, 0.2)])
def test_divergence_is_that_of_gaussian_policies(
    rows: int, close: float, turn: float, noise_p: float
) -> None:
    noise_q, actions = 0.1, 2
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, actions))
    two = one + turn * rng.normal(size=(4, actions))
    # The mean of a few draws: a single one differs by the states it happens to see.
    found = np.mean(
        [
            policy_divergence(
                demonstrator(one, noise_p, rows, 2 * draw),
                demonstrator(two, noise_q, rows, 2 * draw + 1),
            )
            for draw in range(6)
        ]
    )
    ratio = noise_p**2 / noise_q**2
    truth = ((one - two) ** 2).sum() / (2 * noise_q**2) + actions / 2 * (ratio - 1 - np.log(ratio))
    assert found == pytest.approx(truth, rel=close)


def test_divergence_of_equal_policies_is_nothing_and_of_few_rows_unknown() -> None:
    gain = np.random.default_rng(0).normal(size=(4, 2))
    parts = [demonstrator(gain, 0.1, 500, seed) for seed in range(4)]
    one, two = merge(parts[0], parts[1]), merge(parts[2], parts[3])
    assert 0 <= policy_divergence(one, two) < 0.03
    assert np.isnan(policy_divergence(one, demonstrator(gain, 0.1, 10, 9)))
    assert np.isnan(policy_divergence(one, demonstrator(gain, 0.0, 500, 9)))


@pytest.mark.parametrize(("noise", "found"), [(1.0, 0.17), (0.3, 0.87), (0.1, 1.87)])
def test_information_of_few_dims_is_the_known_one(noise: float, found: float) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(10_000, 2))
    gain = np.array([[0.6], [0.0]])
    actions = states @ gain + noise * rng.normal(size=(10_000, 1))
    truth = 0.5 * np.log(1 + 0.36 / noise**2)
    value = pointwise_information(states, actions, repeats=1, batch=2_048).mean()
    assert value == pytest.approx(truth, rel=0.1)
    assert truth == pytest.approx(found, rel=0.15)


def test_information_falls_with_noise_where_it_cannot_measure() -> None:
    rng = np.random.default_rng(0)
    states, gain = rng.normal(size=(3_000, 6)), rng.normal(size=(6, 3))
    clean = states @ gain
    values = [
        pointwise_information(states, clean + s * rng.normal(size=clean.shape), repeats=1).mean()
        for s in (0.1, 0.5, 2.0)
    ]
    assert values[0] > values[1] > values[2] > 0
    assert np.isnan(pointwise_information(states[:5], clean[:5])).all()
