from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from tests.learners.homing import ENVIRONMENT, Homing


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks here are tiny: more threads only wait for one another, long where others work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def homing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The small world by its name, and a cache that is nobody else's."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    gym.register(ENVIRONMENT, entry_point=Homing, max_episode_steps=10)
    yield
    del gym.registry[ENVIRONMENT]
