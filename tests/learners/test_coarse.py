"""The comparison of CQN and ARSQ, in small; and that its data are as poor as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from pipeline.store.store import open_store
from tests.learners.coarse import ALGORITHMS, MODES, TASKS, Modes, compare, learned, modes, returns


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    gym.register(MODES, entry_point=Modes, max_episode_steps=10)
    yield modes(tmp_path / "store")
    del gym.registry[MODES]


def test_what_is_good_is_rare_in_the_data(data: tuple[str, ...]) -> None:
    earned = open_store(data[0]).version().field("rewards").compute()
    assert (earned > 0.5).mean() == pytest.approx(0.1 * 0.75, abs=0.04)
    assert earned.mean() < -0.1


def test_both_are_judged_by_the_same_episodes_of_all_seeds(data: tuple[str, ...]) -> None:
    small = {"steps": 3, "hidden": (8,)}
    found = compare(TASKS["modes"], data, (4, 9), 3, **small)
    assert found.scores.keys() == set(ALGORITHMS)
    apart = []
    for algo, one in found.scores.items():
        earned = returns(learned(algo, TASKS["modes"], data, (4, 9), **small), MODES, 3)
        assert earned.shape == (2, 3)
        np.testing.assert_allclose(one.seeds, earned.mean(axis=1))
        apart.append(one.mean)
    assert found.difference == pytest.approx(apart[1] - apart[0])
    low, high = found.interval
    assert low <= found.difference <= high
