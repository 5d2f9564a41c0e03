"""Proposed filters: found where there is something to find, and honest where there is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.curation.select import Curation, apply
from pipeline.curation.suggest import suggest
from pipeline.store.store import Store
from schemas.errors import UsageError
from tests.store.disks import quick_store
from tests.store.makers import episode, names, score

COUNT = 160
Numbers = np.ndarray


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., Store]:
    """Makes a store of episodes with given successes, lengths and metrics."""

    def make(
        success: Numbers,
        lengths: Numbers | None = None,
        tasks: Sequence[str | None] = ("t0", "t1"),
        **metrics: Numbers,
    ) -> Store:
        store = quick_store(tmp_path / "s")
        lengths = np.full(COUNT, 3) if lengths is None else lengths
        store.append(
            episode(f"e{n}", int(lengths[n]), success=bool(success[n]), task=tasks[n % len(tasks)])
            for n in range(COUNT)
        )
        for name, values in metrics.items():
            one = dict(zip(names(COUNT), map(float, values), strict=True))
            score(store, one, metric=name)
        return store

    return make


def test_a_metric_that_tells_good_from_bad_is_proposed(scored) -> None:
    rng = np.random.default_rng(0)
    quality = rng.random(COUNT)
    success = rng.random(COUNT) < 0.15 + 0.8 * quality
    store = scored(success, action_divergence=1 - quality, smoothness=rng.random(COUNT))
    before = store.version().id
    found = suggest(store.version())
    best = found.proposed
    assert best is not None
    assert found.target == "success"
    assert "action_divergence <=" in best.where
    mask = store.version().where(best.where).mask
    assert mask.sum() == best.kept
    assert best.kept_mean == pytest.approx(success[mask].mean())
    assert best.low < best.gain < best.high
    assert best.gain == pytest.approx(best.kept_mean - best.random_mean)
    assert best.random_mean == pytest.approx(success.mean(), abs=0.05)
    assert best.where in found.sentence()
    assert suggest(store.version()) == found, "the same seed finds the same"
    assert store.version().id == before, "nothing is applied"


def test_noise_proposes_nothing_and_says_so(scored) -> None:
    """Of ten stores of noise, each with hundreds of filters, one in a hundred may be fooled."""
    metrics = ("action_divergence", "smoothness", "coverage", "idle_fraction")
    proposed = []
    store = scored(np.arange(COUNT) % 2 == 0)
    for seed in range(10):
        rng = np.random.default_rng([7, seed])
        for name in metrics:
            one = dict(zip(names(COUNT), map(float, rng.random(COUNT)), strict=True))
            score(store, one, metric=name)
        found = suggest(store.version())
        assert found.tried > 100
        if found.proposed is None:
            assert "nothing is proposed" in found.sentence()
            assert "at random" in found.sentence()
        else:
            proposed.append(found.proposed)
    assert len(proposed) <= 1


def test_what_length_explains_is_not_proposed(scored) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 40, COUNT)
    success = rng.random(COUNT) < np.log(lengths) / np.log(45)
    store = scored(success, lengths, coverage=lengths + rng.normal(size=COUNT))
    found = suggest(store.version())
    top = max(found.candidates, key=lambda one: one.gain)
    assert top.low > 0
    assert top.controlled_gain < top.gain / 2
    assert found.proposed is None


def test_a_difference_between_tasks_is_not_one_between_episodes(scored) -> None:
    """A metric that only names the task must not win because one task is easier."""
    rng = np.random.default_rng(2)
    is_easy = np.arange(COUNT) % 2 == 0
    success = rng.random(COUNT) < np.where(is_easy, 0.9, 0.2)
    store = scored(success, coverage=is_easy + rng.random(COUNT) / 10)
    assert suggest(store.version()).proposed is None


def spread_tasks(
    scored: Callable[..., Store], tasks: Sequence[str | None]
) -> tuple[Store, Numbers]:
    """A store whose episodes succeed by their rank within two halves of different spread."""
    rng = np.random.default_rng(4)
    rank, is_wide = rng.random(COUNT), np.arange(COUNT) % 2 == 1
    success = rng.random(COUNT) < 0.95 - 0.8 * rank
    divergence = np.where(is_wide, 5 + 40 * rank, 0.1 * rank)
    return scored(success, tasks=tasks, action_divergence=divergence), is_wide


def test_tasks_of_different_spread_have_thresholds_of_their_own(scored) -> None:
    store, is_wide = spread_tasks(scored, ("push", "drawer 'open'"))
    found = suggest(store.version())
    best = found.proposed
    assert found.tasks == 2
    assert best is not None
    assert re.fullmatch(
        r"action_divergence <= quantile\(action_divergence, 0\.\d+, task\)", best.where
    )
    kept = apply(store.version(), Curation(where=best.where, unscored="drop"))
    assert len(kept) == best.kept
    shares = [kept.mask[is_wide].mean(), kept.mask[~is_wide].mean()]
    assert best.least_share == min(shares) >= 0.25
    assert shares[0] == pytest.approx(shares[1], abs=0.02), "each task keeps as much"
    assert f"keeps {best.least_share:.0%} or more of every task" in found.sentence()
    made = kept.commit("clean")
    (bounds,) = made.state.derivation.thresholds.values()
    assert bounds["push"] < 0.1 < 5 < bounds["drawer 'open'"], "the record says each threshold"


@pytest.mark.parametrize("tasks", [(None,), ("push",), tuple(f"task {n}" for n in range(80))])
def test_without_tasks_of_some_episodes_there_is_one_threshold(scored, tasks) -> None:
    """None is labelled, all are one task, or each task has two episodes."""
    store, _ = spread_tasks(scored, tasks)
    texts = [one.where for one in suggest(store.version(), most=50).candidates]
    assert texts
    assert not any("quantile" in text for text in texts)
    if len(tasks) == 1:
        assert "every task" not in suggest(store.version()).sentence()


def test_quantiles_are_over_all_episodes_also_those_without_a_target(scored) -> None:
    """As where the filter is applied: what it keeps of those with a target is what it promised."""
    store, is_wide = spread_tasks(scored, ("push", "open"))
    target = np.where(is_wide & (np.arange(COUNT) % 3 == 0), np.nan, np.arange(COUNT) % 7)
    labels = pa.table(
        {"episode_id": names(COUNT), "grade": pa.array(target, pa.float64(), from_pandas=True)}
    )
    version = store.version().annotate(labels)
    has = np.isfinite(target)
    for one in suggest(version, "grade").candidates:
        mask = apply(version, Curation(where=one.where, unscored="drop")).mask
        assert (one.kept, one.of) == (mask[has].sum(), has.sum())
        assert one.kept_mean == pytest.approx(target[has & mask].mean())


def test_targets(scored) -> None:
    rng = np.random.default_rng(3)
    store = scored(np.ones(COUNT, bool), coverage=rng.random(COUNT))
    assert suggest(store.version()).target == "episode_return"
    with pytest.raises(UsageError, match="differs"):
        suggest(store.version(), "success")
    with pytest.raises(UsageError, match="numbers or truth values"):
        suggest(store.version(), "task")
    with pytest.raises(UsageError, match="'sucess'"):
        suggest(store.version(), "sucess")


def test_without_metrics_there_is_nothing_to_propose(scored) -> None:
    store = scored(np.arange(COUNT) % 3 == 0)
    with pytest.raises(UsageError, match="penstock measure"):
        suggest(store.version())
