from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quality.moments import CrossMoments, empty, measure, merge, without

CLUSTERS = 5


def some_rows(
    rows: int, seed: int, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = np.c_[x @ [1.0, -2.0, 0.5], rng.normal(size=rows)]
    return x + offset, y + offset, rng.integers(CLUSTERS, size=rows)


def assert_close(one: CrossMoments, two: CrossMoments, tolerance: float = 1e-9) -> None:
    for name in ("count", "mean_x", "mean_y", "xx", "xy", "yy", "within"):
        left, right = getattr(one, name), getattr(two, name)
        scale = max(float(np.abs(right).max(initial=0)), 1e-300)
        np.testing.assert_allclose(left, right, atol=tolerance * scale, rtol=0, err_msg=name)


def test_moments_are_what_numpy_says() -> None:
    x, y, labels = some_rows(300, 0)
    moments = measure(x, y, labels, CLUSTERS)
    for cluster in range(CLUSTERS):
        inside = labels == cluster
        joint = np.cov(np.c_[x[inside], y[inside]].T, ddof=0) * inside.sum()
        assert moments.count[cluster] == inside.sum()
        np.testing.assert_allclose(moments.mean_x[cluster], x[inside].mean(0))
        np.testing.assert_allclose(moments.xx[cluster], joint[:3, :3], atol=1e-11)
        np.testing.assert_allclose(moments.xy[cluster], joint[:3, 3:], atol=1e-11)
        np.testing.assert_allclose(moments.yy[cluster], np.diag(joint)[3:], atol=1e-11)


def test_64_shards_in_random_order_are_one_pass() -> None:
    x, y, labels = some_rows(6400, 1, offset=1e4)
    parts = [
        measure(x[i::64], y[i::64], labels[i::64], CLUSTERS)
        for i in np.random.default_rng(2).permutation(64)
    ]
    assert_close(reduce(merge, parts), measure(x, y, labels, CLUSTERS))


@given(
    sizes=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
)
def test_merge_is_associative_and_commutative(sizes: list[int], seed: int, offset: float) -> None:
    a, b, c = (
        measure(*some_rows(size, seed + number, offset), CLUSTERS)
        for number, size in enumerate(sizes)
    )
    assert_close(merge(merge(a, b), c), merge(a, merge(b, c)), 1e-8)
    assert_close(merge(a, b), merge(b, a), 1e-8)
    assert_close(merge(a, empty(CLUSTERS, 3, 2)), a)


@given(rows=st.integers(1, 200), taken=st.integers(0, 60), seed=st.integers(0, 1000))
def test_without_undoes_merge(rows: int, taken: int, seed: int) -> None:
    kept = measure(*some_rows(rows, seed), CLUSTERS)
    part = measure(*some_rows(taken, seed + 1), CLUSTERS)
    whole = merge(kept, part)
    left = without(whole, part)
    for name in ("count", "mean_x", "mean_y", "xx", "xy", "yy", "within"):
        scale = float(np.abs(getattr(whole, name)).max()) + 1.0  # rounding is the whole's
        np.testing.assert_allclose(
            getattr(left, name), getattr(kept, name), atol=1e-10 * scale, rtol=0, err_msg=name
        )


def test_without_everything_is_empty() -> None:
    moments = measure(*some_rows(40, 0), CLUSTERS)
    assert_close(without(moments, moments), empty(CLUSTERS, 3, 2))


def test_repeated_is_the_same_rows_again() -> None:
    x, y, labels = some_rows(50, 3)
    twice = measure(np.r_[x, x], np.r_[y, y], np.r_[labels, labels], CLUSTERS)
    repeated = measure(x, y, labels, CLUSTERS).repeated(np.full(CLUSTERS, 2.0))
    for name in ("count", "mean_x", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(repeated, name), getattr(twice, name), atol=1e-10)


def test_total_is_the_rows_as_one_cluster() -> None:
    x, y, labels = some_rows(200, 4, offset=1e3)
    one = measure(x, y, np.zeros(200, np.int64), 1)
    assert_close(measure(x, y, labels, CLUSTERS).total, one)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_residual_variance_survives_large_offsets(offset: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20_000, 2))
    y = x @ [[1.0], [2.0]] + 0.1 * rng.normal(size=(20_000, 1))
    labels = np.zeros(20_000, np.int64)
    parts = [
        measure(x[i : i + 500] + offset, y[i : i + 500] + offset, labels[i : i + 500], 1)
        for i in range(0, 20_000, 500)
    ]
    moments = reduce(merge, parts)
    slopes = np.linalg.solve(moments.xx[0], moments.xy[0])
    residual = (moments.yy[0] - (moments.xy[0] * slopes).sum(0)) / (20_000 - 3)
    assert residual[0] == pytest.approx(0.01, rel=0.03)
