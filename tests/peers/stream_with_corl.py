"""The pattern of CORL's replay buffer, written from its description: tensors, indexed at random.

Windows are drawn as its decision transformer's are: one at a time, padded, then collated.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_source import BATCH, WINDOW, WINDOWS, arrays, episodes
from torch.utils.data import default_collate

VERSION = f"torch {torch.__version__}"


def l1(place: Path) -> Callable[[], Any]:
    """Five tensors indexed by a NumPy array of integers."""
    held = tensors(place)
    size = len(held[0])

    def batch() -> Any:
        rows = np.random.randint(0, size, size=BATCH)  # noqa: NPY002 - as CORL does
        return [one[rows] for one in held]

    return batch


def l2(place: Path) -> Callable[[], Any]:
    """One window at a time from episodes by their length, padded, collated."""
    d = arrays(place)
    spans = episodes(d)
    lengths = np.array([stop - start for start, stop in spans])
    shares = lengths / lengths.sum()
    rng = np.random.default_rng(0)

    def window() -> Any:
        start, stop = spans[rng.choice(len(spans), p=shares)]
        first = start + int(rng.integers(0, stop - start))
        cut = slice(first, min(first + WINDOW, stop))
        short = WINDOW - (cut.stop - first)
        mask = np.hstack([np.ones(WINDOW - short, np.float32), np.zeros(short, np.float32)])
        found = [d[name][cut] for name in ("observations", "actions", "rewards")]
        if short:
            found = [np.pad(one, ((0, short), (0, 0))[: one.ndim]) for one in found]
        return *found, mask

    return lambda: default_collate([window() for _ in range(WINDOWS)])


def l3(place: Path) -> Iterator[Any]:
    """Arrays loaded whole, torch.randperm; the order without replacement is not CORL's."""
    held = tensors(place)
    for rows in torch.randperm(len(held[0])).split(BATCH):
        yield [one[rows] for one in held]


def tensors(place: Path) -> list[torch.Tensor]:
    d = arrays(place)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    shaped = [d[name] if d[name].ndim == 2 else d[name][:, None] for name in names]
    return [torch.tensor(one, dtype=torch.float32) for one in shaped]
