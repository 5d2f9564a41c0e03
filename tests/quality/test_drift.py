"""Drift against truths of Gaussians, in any order of shards, and in words."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from scipy.stats import norm

from pipeline.quality.classifier import density_ratio, two_samples
from pipeline.quality.drift import Drift, DriftStage, Side, compare, frechet
from pipeline.quality.moments import CrossMoments, measure
from pipeline.quality.passes import accumulate, merge
from pipeline.quality.rff import Frequencies, effective_rank, embed, merged, mmd_squared
from schemas.episode import Episode
from schemas.metrics import MeasureConfig
from tests.quality.systems import episode

ROWS = 20_000


def shifted(dims: int, delta: float, seed: int, rows: int = ROWS) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, dims))
    found[:, 0] += delta
    return found


@pytest.mark.parametrize(("dims", "delta"), [(20, 0.5), (5, 0.0)])
def test_mmd_is_that_of_two_gaussians(dims: int, delta: float) -> None:
    bandwidth = dims**0.5
    frequencies = Frequencies(dims, bandwidth)
    one, two = (embed(shifted(dims, d, s), frequencies) for d, s in ((0.0, 0), (delta, 1)))
    factor = 2 * (1 + 2 / bandwidth**2) ** (-dims / 2)
    truth = factor * (1 - np.exp(-(delta**2) / (2 * (bandwidth**2 + 2))))
    assert mmd_squared(one, two) == pytest.approx(truth, rel=0.15, abs=2e-4)


def test_embeddings_merge_in_any_order() -> None:
    rows = shifted(3, 0.0, 0, 6_400)
    frequencies = Frequencies(3, 1.5, count=128)
    order = np.random.default_rng(0).permutation(64)
    parts = [embed(rows[i * 100 : i * 100 + 100], frequencies) for i in order]
    whole = embed(rows, frequencies)
    np.testing.assert_allclose(merged(parts, frequencies).mean, whole.mean, rtol=1e-9, atol=1e-12)
    assert np.isnan(mmd_squared(whole, merged([], frequencies)))


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
def test_auc_is_that_of_two_gaussians(delta: float) -> None:
    one, two = shifted(20, 0.0, 0), shifted(20, delta, 1)
    episodes = np.arange(ROWS) // 100
    found = two_samples(one, two, episodes, episodes)
    assert found.auc == pytest.approx(norm.cdf(delta / np.sqrt(2)), abs=0.02)
    assert found.low <= found.auc <= found.high
    assert found.high - found.low < 0.03
    # The logit is the log density ratio, delta x - delta^2 / 2.
    truth = delta * one[:, 0] - delta**2 / 2
    assert np.abs(found.logits[:ROWS] - truth).mean() < 0.15
    weighted = np.average(one[:, 0], weights=density_ratio(found.logits[:ROWS]))
    assert weighted == pytest.approx(delta, abs=0.1)


def test_episodes_of_their_own_look_do_not_fool_the_classifier() -> None:
    """Rows that differ by episode, not by side: folds by row would tell them apart."""
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        looks = np.repeat(rng.normal(size=(30, 8)), 50, axis=0)
        sides.append(looks + 0.05 * rng.normal(size=looks.shape))
    episodes = np.arange(1_500) // 50
    found = two_samples(sides[0], sides[1], episodes, episodes)
    assert found.low < 0.5
    alone = two_samples(sides[0], sides[1], np.zeros(1_500), episodes)
    assert np.isnan(alone.auc)


def moments(rows: np.ndarray) -> CrossMoments:
    return measure(rows, np.empty((len(rows), 0)), np.zeros(len(rows), np.int64), 1)


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
def test_frechet_is_the_squared_shift(delta: float) -> None:
    one, two = moments(shifted(20, 0.0, 0)), moments(shifted(20, delta, 1))
    assert frechet(one, two) == pytest.approx(delta**2, abs=0.06)
    few = moments(shifted(20, delta, 1, 1_999))
    assert np.isnan(frechet(one, few))


def runs(count: int, seed: int, offset: float = 0.0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        episode(
            f"e{k}",
            rng.normal(size=(51, 3)) + offset * np.array([0, 1, 0]),
            rng.normal(size=(50, 2)),
        )
        for k in range(count)
    ]


def side(episodes: list[Episode]) -> Side:
    (found,) = accumulate(episodes, DriftStage(MeasureConfig())).values()
    return found


def drift(one: list[Episode], two: list[Episode]) -> Drift:
    (layout,) = accumulate(one[:1], DriftStage(MeasureConfig()))
    return compare(layout, side(one), side(two), MeasureConfig())


def test_64_shards_in_random_order_are_one_pass() -> None:
    episodes, stage = runs(128, 0), DriftStage(MeasureConfig())
    order = np.random.default_rng(1).permutation(128)
    shards = [accumulate([episodes[i] for i in order[start::64]], stage) for start in range(64)]
    (split,) = reduce(merge, shards).values()
    whole = side(episodes)
    np.testing.assert_allclose(split.moments.xx, whole.moments.xx, rtol=1e-9)
    np.testing.assert_array_equal(split.sample.rows, whole.sample.rows)
    assert split.episodes == 128


def test_a_shift_is_found_named_and_said() -> None:
    found = drift(runs(100, 0), runs(80, 1, offset=1.5))
    assert found.verdict == "differ strongly"
    assert found.auc == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.02)
    assert found.columns[0].column == "observations:1"
    assert found.columns[0].shift == pytest.approx(1.5, abs=0.05)
    # Two normals a shift apart differ most in between.
    assert found.columns[0].distance == pytest.approx(2 * norm.cdf(0.75) - 1, abs=0.06)
    assert found.mmd is not None
    assert found.mmd_within is not None
    assert found.mmd > 20 * abs(found.mmd_within)
    assert (found.episodes, found.rows) == ((100, 80), (5_000, 4_000))
    assert found.effective_share is not None
    assert 0.02 < found.effective_share < 0.6


def test_equal_policies_are_alike_and_too_few_unknown() -> None:
    found = drift(runs(60, 0), runs(60, 1))
    assert found.verdict == "alike"
    assert found.effective_share == pytest.approx(1.0, abs=0.1)
    few = drift(runs(60, 0), runs(1, 1))
    assert (few.verdict, few.auc, few.frechet) == ("unknown", None, None)


@pytest.mark.parametrize(
    ("auc", "low", "said"),
    [
        (0.6, 0.49, "alike"),
        (0.54, 0.53, "alike"),
        (0.6, 0.58, "differ slightly"),
        (0.7, 0.6, "differ clearly"),
        (0.9, 0.8, "differ strongly"),
    ],
)
def test_verdicts(auc: float, low: float, said: str) -> None:
    found = Drift((2, 2), (9, 9), auc, (low, 1.0), None, None, None, None, ())
    assert found.verdict == said
    assert replace(found, auc=None).verdict == "unknown"


def test_effective_rank_counts_what_lies_apart() -> None:
    rng = np.random.default_rng(0)
    frequencies = Frequencies(2, 1.0, count=128)
    assert effective_rank(np.ones((50, 2)), frequencies) == pytest.approx(1.0)
    for kinds in (2, 5):
        centres = 20.0 * rng.normal(size=(kinds, 2))
        rows = np.repeat(centres, 100, axis=0) + 1e-3 * rng.normal(size=(100 * kinds, 2))
        assert effective_rank(rows, frequencies) == pytest.approx(kinds, rel=0.1)
