"""Trajectories made in parallel processes, each by its own seed, written in OGBench's layout."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]
"""Arrays of one trajectory: a row per observation, its last action leads nowhere."""


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """Reads the command line of a maker: WORLD OUT and what else it can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("world")
    parser.add_argument("out", type=Path)
    for name in ("episodes", "length", "seed", "processes"):
        parser.add_argument(f"--{name}", type=int, default=defaults.pop(name))
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def seed_everything(seed: int) -> None:
    """Seeds NumPy's global numbers, which the simulators' own scripts draw from."""
    np.random.seed(seed)  # noqa: NPY002


def make_all(make: Callable[[int], Rows], count: int, processes: int) -> list[Rows]:
    """Makes so many trajectories by their numbers, in their order.

    Args:
        make: a picklable function; returns the same for the same number in any process.
        count: how many.
        processes: that share the work.
    """
    if processes <= 1:
        return [make(number) for number in range(count)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(make, range(count)))


def write(out: Path, trajectories: list[Rows], more: Mapping[str, np.ndarray] | None = None) -> int:
    """Writes trajectories end to end; returns how many rows there are."""
    names = trajectories[0].keys()
    arrays: dict[str, Any] = {
        name: np.concatenate([one[name] for one in trajectories]) for name in names
    }
    lengths = [len(one["observations"]) for one in trajectories]
    terminals = np.zeros(sum(lengths), bool)
    terminals[np.cumsum(lengths) - 1] = True
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **{**arrays, **(more or {}), "terminals": terminals})
    return len(terminals)
