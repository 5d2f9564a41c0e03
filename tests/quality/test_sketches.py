"""What sketches promise: rank errors of quantiles, registers that any order of merges fills."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from scipy.stats import norm

from pipeline.quality.sketches import COUNT_ERROR, RANK_ERROR, Quantiles, Uniques, union
from schemas.errors import DamagedStoreError

RANKS = (0.01, 0.25, 0.5, 0.75, 0.99)


def in_shards(values: np.ndarray, seed: int) -> list[np.ndarray]:
    shards = np.array_split(values, 64)
    return [shards[i] for i in np.random.default_rng(seed).permutation(64)]


@pytest.mark.parametrize("seed", [0, 1])
def test_quantiles_keep_their_rank_error_in_any_order(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=100_000)
    merged = reduce(Quantiles.merge, map(Quantiles.of, in_shards(values, seed)))
    errors = np.asarray(norm.cdf(merged.at(RANKS))) - RANKS
    assert np.abs(errors).max() < 2 * RANK_ERROR
    assert np.abs(merged.ranks(np.asarray(norm.ppf(RANKS))) - RANKS).max() < 2 * RANK_ERROR
    # These are exact: how many, and the ends.
    assert merged.count == 100_000
    assert merged.at([0.0, 1.0]) == [values.min(), values.max()]
    assert len(merged.to_bytes()) < 6_000


def test_few_values_have_exact_quantiles() -> None:
    values = np.append(np.arange(100.0), np.nan)
    merged = reduce(Quantiles.merge, map(Quantiles.of, in_shards(values, 0)))
    assert merged.at([0.0, 0.5, 1.0]) == [0.0, 49.0, 99.0]
    assert merged.count == 100
    assert np.isnan(Quantiles.of(np.zeros(0)).at([0.5])).all()
    assert np.isnan(Quantiles.of(np.zeros(0)).ranks(np.zeros(1))).all()


@pytest.mark.parametrize("distinct", [0, 10, 300, 5_000, 159_600])
def test_distinct_counts_are_within_three_errors_and_order_free(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    values = rng.permutation(np.tile(np.arange(distinct), 2))
    found = set()
    for seed in range(3):
        parts = [Uniques.of(shard) for shard in in_shards(values, seed)]
        found.add(reduce(Uniques.merge, parts).estimate)
        found.add(union(parts).estimate)
        found.add(union(Uniques.from_bytes(part.to_bytes()) for part in parts).estimate)
    assert max(found) - min(found) <= 1e-9 * max(found)
    assert min(found) == pytest.approx(distinct, rel=3 * COUNT_ERROR, abs=1e-6)


def test_sketches_outlive_their_process_and_know_rubbish() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    kept = Quantiles.of(values)
    assert Quantiles.from_bytes(kept.to_bytes()).at(RANKS) == kept.at(RANKS)
    assert len(Uniques.of(np.arange(100_000)).to_bytes()) < 2_200
    for kind in (Quantiles, Uniques):
        with pytest.raises(DamagedStoreError, match="sketch"):
            kind.from_bytes(b"not a sketch at all")
