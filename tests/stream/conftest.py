"""Stores with episodes whose every number says where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.store import Store, open_store
from schemas.episode import Episode


def made_episode(number: int, length: int, *, ends: str = "terminated", **facts: object) -> Episode:
    """An episode whose values tell episode and step: 1000 * number + t.

    `ends` is `terminated`, `truncated` (its final observation present) or `lost` (truncated, the
    final observation missing).
    """
    rows = length + (ends != "lost")
    at = 1000.0 * number + np.arange(rows)
    return Episode(
        episode_id=f"e{number}",
        observations={"observations": np.stack([at, -at, at / 2], axis=1)},
        actions=np.stack([at[:length] + 0.25, at[:length] + 0.5], axis=1).astype(np.float32),
        rewards=at[:length] + 0.75,
        terminated=ends == "terminated",
        truncated=ends != "terminated",
        **facts,  # type: ignore[arg-type]
    )


ENDS = ("terminated", "truncated", "lost")


def made_episodes(numbers: range, seed: int = 0) -> list[Episode]:
    """Episodes of various lengths and ends."""
    lengths = np.random.default_rng(seed).integers(1, 40, len(numbers))
    return [
        made_episode(number, int(length), ends=ENDS[number % 3])
        for number, length in zip(numbers, lengths, strict=True)
    ]


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PENSTOCK_CACHE", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path, cache_dir: Path) -> Store:
    """A store with 30 episodes in one version, and a cache beside it."""
    made = open_store(tmp_path / "store", create=True)
    made.append(made_episodes(range(30)))
    return made


@pytest.fixture
def make_store(tmp_path: Path, cache_dir: Path) -> Callable[[list[Episode]], Store]:
    """Makes a store of given episodes."""

    def make(episodes: list[Episode]) -> Store:
        made = open_store(tmp_path / "made", create=True)
        made.append(episodes)
        return made

    return make
