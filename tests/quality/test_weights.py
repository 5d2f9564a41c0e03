"""Weights by closed forms, and at their edges."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from pipeline.quality.weights import (
    ValueMoments,
    Weighting,
    advantage_weights,
    rank_weights,
    returns_to_go,
    softmax_weights,
)


def test_effective_sample_size_of_known_weights() -> None:
    assert Weighting(np.ones(7)).effective == 7
    assert Weighting(np.array([1.0, 0.0, 0.0])).effective == 1
    assert Weighting(np.array([3.0, 1.0])).effective == pytest.approx(1.6)
    assert Weighting(np.array([3.0, 1.0])).largest_share == 0.75
    assert Weighting(np.zeros(3)).effective == Weighting(np.zeros(0)).largest_share == 0.0


def test_advantages_weigh_exponentially_up_to_the_limit() -> None:
    found = advantage_weights(np.array([0.0, 1.0, 1e6, -1e6, np.nan]), 0.5).weights
    assert found.tolist() == pytest.approx([1.0, np.exp(2.0), 100.0, 0.0, 0.0])


def test_softmax_weights_are_those_of_scaled_returns() -> None:
    found = softmax_weights(np.array([10.0, 20.0, 30.0, np.nan]), 0.5).weights
    truth = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose(found, [*truth, 0.0])
    # Any scale of the returns, however large, gives the same weights.
    np.testing.assert_allclose(softmax_weights(np.array([1e9, 2e9, 3e9]), 0.5).weights, truth)
    assert softmax_weights(np.full(4, 3.0), 0.1).weights.tolist() == [0.25] * 4
    assert not softmax_weights(np.full(2, np.nan), 0.1).weights.any()
    assert np.isfinite(softmax_weights(np.array([0.0, 1.0]), 1e-9).weights).all()


def test_ranks_weigh_the_best_most() -> None:
    scores = np.array([0.1, 0.4, 0.2, np.nan, 0.3])
    found = rank_weights(scores, 2.0, higher_is_better=False).weights
    np.testing.assert_allclose(found, np.array([1.0, 0.25, 0.75, 0.0, 0.5]) ** 2)
    turned = rank_weights(-scores, 2.0, higher_is_better=True).weights
    np.testing.assert_allclose(turned, found)
    assert rank_weights(scores, 0.0, higher_is_better=True).weights.tolist() == [1, 1, 1, 0, 1]
    equal = rank_weights(np.ones(5), 1.0, higher_is_better=True).weights
    assert len(set(equal.tolist())) == 1


def test_returns_to_go_are_discounted_sums() -> None:
    assert returns_to_go(np.array([1.0, 2.0, 4.0])).tolist() == [7.0, 6.0, 4.0]
    assert returns_to_go(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert len(returns_to_go(np.zeros(0))) == 0


def test_a_linear_value_is_found_in_any_order_of_shards() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(6_400, 3)) + 1e4
    returns = states @ [1.0, -2.0, 0.5] + 7.0 + 0.1 * rng.normal(size=6_400)
    whole = ValueMoments.of(states, returns).fit()
    parts = [
        ValueMoments.of(*pair)
        for pair in zip(np.split(states, 64), np.split(returns, 64), strict=True)
    ]
    split = reduce(ValueMoments.merge, [parts[i] for i in rng.permutation(64)]).fit()
    np.testing.assert_allclose(split.of(states), whole.of(states), rtol=1e-9)
    np.testing.assert_allclose(whole.slopes, [1.0, -2.0, 0.5], atol=0.01)
    assert np.std(returns - whole.of(states)) == pytest.approx(0.1, rel=0.03)
    nothing = ValueMoments.of(np.full((2, 3), np.nan), np.zeros(2))
    assert nothing.merge(parts[0]).count == 100
