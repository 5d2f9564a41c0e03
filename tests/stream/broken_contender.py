"""Contenders of the benchmark that deliver what the source does not hold."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("observations", "actions", "rewards", "next_observations", "terminated")


def l1_many(place: Path) -> Callable[[], Any]:
    """Never draws a truncated end."""
    return lambda: _draw(place, _may_be_drawn(place, "truncated"))


def l1_memory(place: Path) -> Callable[[], Any]:
    """Hands out the observation of a step as its next one."""
    steps = _may_be_drawn(place)
    return lambda: [_draw(place, steps)[0 if n == 3 else n] for n in range(5)]


def l1_numpy(place: Path) -> Callable[[], Any]:
    """Ends before its first batch."""
    raise ValueError("nothing to draw")


def l2_many(place: Path) -> Callable[[], Any]:
    """Windows that go on over the ends of episodes."""
    held = _held(place)
    rng = np.random.default_rng(0)

    def batch() -> Any:
        rows = rng.integers(0, len(held["rewards"]) - 64, 32)[:, None] + np.arange(64)
        return [held[name][rows] for name in NAMES[:3]]

    return batch


@cache
def _held(place: Path) -> dict[str, np.ndarray]:
    return {name: np.load(place / "source" / f"{name}.npy") for name in NAMES}


def _may_be_drawn(place: Path, without: str | None = None) -> np.ndarray:
    flags = np.load(place / "source" / "truncated.npy")
    return np.flatnonzero(~flags) if without else np.arange(len(flags))


_random = np.random.default_rng(0)


def _draw(place: Path, steps: np.ndarray) -> list[np.ndarray]:
    rows = steps[_random.integers(0, len(steps), 256)]
    return [array[rows] for array in _held(place).values()]
