"""Grain's MapDataset over arrays in memory, no threads; its sources are written by its users."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grain
import numpy as np
import torch
from stream_source import BATCH, CLIPS, FRAMES, WINDOW, WINDOWS, arrays, episodes

VERSION = f"Grain {version('grain')}"


class Windows:
    """Rows of a matrix that follow each other, as a source is written for Grain."""

    def __init__(self, matrix: np.ndarray, starts: np.ndarray, length: int) -> None:
        self._matrix, self._starts, self._length = matrix, starts, length

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, item: int) -> np.ndarray:
        start = self._starts[item]
        return self._matrix[start : start + self._length]


def l1(place: Path) -> Callable[[], Any]:
    """One matrix in memory, shuffle(), batch(256)."""
    drawn = iter(batches(Windows(*transitions(place), 1), BATCH))
    return lambda: cut(next(drawn))


def l2(place: Path) -> Callable[[], Any]:
    """Windows of one matrix in memory, shuffle(), batch(32)."""
    d = arrays(place)
    matrix = np.concatenate([d["observations"], d["actions"], d["rewards"][:, None]], axis=1)
    drawn = iter(batches(Windows(matrix, fitting(d, WINDOW), WINDOW), WINDOWS))

    def batch() -> Any:
        found = torch.from_numpy(next(drawn))
        return found[..., :11], found[..., 11:14], found[..., 14]

    return batch


def l3(place: Path) -> Iterator[Any]:
    """Arrays loaded whole, shuffle(), one epoch."""
    for found in batches(Windows(*transitions(place), 1), BATCH, is_endless=False):
        yield cut(found)


def l4(place: Path) -> Callable[[], Any]:
    """Windows of 3 pictures in memory, shuffle(), batch(64)."""
    d = arrays(place)
    drawn = iter(batches(Windows(d["observations"], fitting(d, FRAMES), FRAMES), CLIPS))
    return lambda: [torch.from_numpy(next(drawn))]


def transitions(place: Path) -> tuple[np.ndarray, np.ndarray]:
    d = arrays(place)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    flat = [d[name].astype(np.float32).reshape(len(d["rewards"]), -1) for name in names]
    return np.concatenate(flat, axis=1), np.arange(len(d["rewards"]))


def batches(source: Windows, rows: int, *, is_endless: bool = True) -> Any:
    held = grain.MapDataset.source(source).seed(0).shuffle()
    held = held.repeat() if is_endless else held
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return held.to_iter_dataset(options).batch(rows)


def cut(found: np.ndarray) -> Any:
    rows = torch.from_numpy(found)[:, 0]
    return rows[:, :11], rows[:, 11:14], rows[:, 14], rows[:, 15:26], rows[:, 26]


def fitting(d: dict[str, np.ndarray], length: int) -> np.ndarray:
    return np.concatenate([np.arange(a, b - length + 1) for a, b in episodes(d)])
