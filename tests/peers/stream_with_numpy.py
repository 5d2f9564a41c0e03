"""What is written in a moment without any library: plain arrays and numpy.take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_source import BATCH, CLIPS, FRAMES, WINDOW, WINDOWS, arrays, episodes

VERSION = f"NumPy {np.__version__}"
NAMES = ("observations", "actions", "rewards", "next_observations", "terminals")


def l1(place: Path) -> Callable[[], Any]:
    """numpy.take on five arrays."""
    d = arrays(place)
    rng = np.random.default_rng(0)
    size = len(d["rewards"])

    def batch() -> Any:
        rows = rng.integers(0, size, BATCH)
        return [torch.from_numpy(np.take(d[name], rows, axis=0)) for name in NAMES]

    return batch


def l2(place: Path) -> Callable[[], Any]:
    """numpy.take of (32, 64) rows on three arrays, windows that fit."""
    return windows(arrays(place), NAMES[:3], WINDOW, WINDOWS)


def l4(place: Path) -> Callable[[], Any]:
    """numpy.take of (64, 3) pictures in memory."""
    return windows(arrays(place), NAMES[:1], FRAMES, CLIPS)


def windows(
    d: dict[str, np.ndarray], names: tuple[str, ...], length: int, count: int
) -> Callable[[], Any]:
    starts = np.concatenate([np.arange(a, b - length + 1) for a, b in episodes(d)])
    rng = np.random.default_rng(0)
    steps = np.arange(length)

    def batch() -> Any:
        rows = starts[rng.integers(0, len(starts), count)][:, None] + steps
        return [torch.from_numpy(np.take(d[name], rows, axis=0)) for name in names]

    return batch
