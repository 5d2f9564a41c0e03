"""Small made-up episodes for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from schemas.episode import Episode


def episode(name: str, seed: int = 0, length: int = 20, **facts: Any) -> Episode:
    """One episode of 4 observation and 2 action dims that `name` and `seed` decide."""
    rng = np.random.default_rng([seed, *name.encode()])
    return Episode(
        name,
        {"observations": rng.normal(size=(length + 1, 4)).astype(np.float32)},
        rng.normal(size=(length, 2)).astype(np.float32),
        rng.normal(size=length).astype(np.float32),
        **{"truncated": True, **facts},
    )


def write_d4rl(path: Path, lengths: list[int], *, seed: int = 0, **changes: np.ndarray) -> Path:
    """A D4RL file of truncated episodes without next observations; `changes` replace arrays."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    arrays: dict[str, np.ndarray] = {
        "observations": rng.normal(size=(rows, 4)).astype(np.float32),
        "actions": rng.normal(size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path
