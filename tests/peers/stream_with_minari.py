"""Minari's local datasets, which hand out whole episodes; what is cut from them is cut here."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import torch
from minari import MinariDataset
from stream_source import BATCH, CLIPS, FRAMES, SIDE, WINDOW, WINDOWS, arrays
from with_minari import NUMBERS, create

VERSION = f"Minari {minari.__version__}"
ID = "bench/low-v0"
PICTURES = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)


def prepare_numbers(place: Path) -> None:
    _write(place, NUMBERS)


def prepare_pictures(place: Path) -> None:
    _write(place, PICTURES, jpeg_encoding=False)


def l1(place: Path) -> Callable[[], Any]:
    """sample_episodes(256), one step of each."""
    dataset, rng = _load(place), np.random.default_rng(0)

    def batch() -> Any:
        drawn = [(e, int(rng.integers(len(e.rewards)))) for e in dataset.sample_episodes(BATCH)]
        return [
            torch.from_numpy(np.stack(rows))
            for rows in (
                [e.observations[t] for e, t in drawn],
                [e.actions[t] for e, t in drawn],
                [e.rewards[t] for e, t in drawn],
                [e.observations[t + 1] for e, t in drawn],
                [e.terminations[t] for e, t in drawn],
            )
        ]

    return batch


def l2(place: Path) -> Callable[[], Any]:
    """sample_episodes(32), 64 steps of each."""
    dataset, rng = _load(place), np.random.default_rng(0)

    def batch() -> Any:
        drawn = []
        for e in dataset.sample_episodes(WINDOWS):
            first = int(rng.integers(len(e.rewards) - WINDOW + 1))
            cut = slice(first, first + WINDOW)
            drawn.append((e.observations[cut], e.actions[cut], e.rewards[cut]))
        return [torch.from_numpy(np.stack(rows)) for rows in zip(*drawn, strict=True)]

    return batch


def l3(place: Path) -> Iterator[Any]:
    """iterate_episodes into arrays, torch.randperm; the order is not Minari's."""
    held = [
        (e.observations[:-1], e.actions, e.rewards, e.observations[1:], e.terminations)
        for e in _load(place).iterate_episodes()
    ]
    joined = [torch.from_numpy(np.concatenate(rows)) for rows in zip(*held, strict=True)]
    for rows in torch.randperm(len(joined[0])).split(BATCH):
        yield [one[rows] for one in joined]


def l4(place: Path) -> Callable[[], Any]:
    """sample_episodes(64), 3 pictures of each, not JPEG."""
    dataset, rng = _load(place), np.random.default_rng(0)

    def batch() -> Any:
        drawn = []
        for e in dataset.sample_episodes(CLIPS):
            first = int(rng.integers(len(e.rewards) - FRAMES + 1))
            drawn.append(np.asarray(e.observations[first : first + FRAMES]))
        return [torch.from_numpy(np.stack(drawn))]

    return batch


def _write(place: Path, space: gymnasium.spaces.Box, **options: Any) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(place / "minari")
    d = arrays(place)
    create(ID, d, d["last_observations"], space, **options)


def _load(place: Path) -> MinariDataset:
    os.environ["MINARI_DATASETS_PATH"] = str(place / "minari")
    return minari.load_dataset(ID)
