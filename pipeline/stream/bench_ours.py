"""What `penstock bench stream` times of ours, for `bench_child.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.store.store import open_version
from pipeline.stream import torch_adapter  # noqa: F401 - so that no time includes loading torch
from pipeline.stream.bench_child import Batch
from pipeline.stream.bench_data import BATCH, BUDGET, CLIPS, FRAMES, WINDOW, WINDOWS
from pipeline.stream.loader import Stream

_TRANSITION = ("observations", "actions", "rewards", "next_observations", "terminated")


def l1(place: Path) -> Callable[[], Batch]:
    """Stream of transitions, tensors."""
    return _made(place, _TRANSITION)


def l1_numpy(place: Path) -> Callable[[], Batch]:
    """Stream of transitions, NumPy arrays."""
    return _made(place, _TRANSITION, framework="numpy")


def l2(place: Path) -> Callable[[], Batch]:
    """Stream of windows anchored at any step, padded after the episode, with masks."""
    read = (*_TRANSITION[:3], "mask")
    return _made(place, read, sampler="window", window=WINDOW, batch_size=WINDOWS)


def l4(place: Path) -> Callable[[], Batch]:
    """Stream of windows of pictures that fit their episode."""
    asked = {"sampler": "window", "window": FRAMES, "batch_size": CLIPS, "pad": "none"}
    return _made(place, ("observations",), **asked)


def l3(place: Path) -> Iterator[Batch]:
    """Shuffled epoch of a version never seen: packed first."""
    return _epoch(place, cache_dir=tempfile.mkdtemp(dir=place))


def l3_cached(place: Path) -> Iterator[Batch]:
    """Shuffled epoch of a version that the cache holds."""
    return _epoch(place, cache_dir=str(place / "cache"))


def l3_windowed(place: Path) -> Iterator[Batch]:
    """Shuffled epoch from the store through a buffer, without a cache file."""
    return _epoch(place, residency="windowed", memory=BUDGET, shuffle_window=4)


def l3_shards(place: Path) -> Iterator[Batch]:
    """All shards read and unpacked, nothing made of them."""
    version = open_version(f"{place}/store@main")
    names = sorted(next(iter(version.specs.values())).fields)
    for part in version.state.parts:
        for block in part.blocks:
            yield (version.store.read_block(block, names)["observations"],)


def prepare_numbers(place: Path) -> None:
    """Fills the cache."""
    l3_cached(place).__next__()


def _made(place: Path, read: tuple[str, ...], **settings: Any) -> Callable[[], Batch]:
    stream = Stream(f"{place}/store@main", cache_dir=str(place / "cache"), **settings)

    def batch() -> Batch:
        found: Mapping[str, Any] = next(stream)
        return [found[name] for name in read]

    return batch


def _epoch(place: Path, **settings: Any) -> Iterator[Batch]:
    stream = Stream(f"{place}/store@main", sampler="shuffle", batch_size=BATCH, **settings)
    for _ in range(-(-stream.transitions // BATCH)):
        found: Mapping[str, Any] = next(stream)
        yield [found[name] for name in _TRANSITION]
