"""What `penstock bench stream` streams: known rows, as plain arrays that anybody can read.

Numbers have Hopper's sizes, in episodes of 900 to 1,100 steps of which 30 % end by termination and
the others are truncated. Every observation is different, so that a row that is delivered can be
found again. Pictures are 84 x 84 x 3, smooth with a sensor's noise, and carry their number in their
first pixel for the same reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from schemas.episode import Episode

BATCH, WINDOW, WINDOWS, FRAMES, CLIPS = 256, 64, 32, 3, 64
"""Rows of a batch; steps of a window and windows of a batch, of numbers and of pictures."""
BUDGET = 64 << 20
"""Bytes that `windowed` may take; a million steps are 80 MB of records."""
OBSERVATION, ACTION = 11, 3
LENGTH = 1_000
"""Steps of an episode of numbers, 10 % more or less."""
STEPS = 100
"""Steps of an episode of pictures."""
SIDE = 84
NUMBERS, PICTURES = "numbers", "pictures"

Arrays = Mapping[str, np.ndarray]
"""`observations, actions, rewards, terminated, truncated`, one row per step of all episodes after
each other, and `last_observations`, one row per episode; of numbers `next_observations`, too."""


def make_source(folder: Path, kind: str, steps: int) -> Path:
    """Writes the arrays of a source as .npy files and the same into a store.

    Args:
        folder: a new folder `kind` is made in it.
        kind: `NUMBERS` or `PICTURES`.
        steps: of all episodes together.

    Returns:
        The new folder: the arrays are in `source`, the store in `store`.
    """
    place = folder / kind
    (place / "source").mkdir(parents=True)
    arrays = _numbers(steps) if kind == NUMBERS else _pictures(steps)
    for name, array in arrays.items():
        np.save(place / "source" / f"{name}.npy", array, allow_pickle=False)
    store_version(place, arrays)
    return place


def read_source(place: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a source, mapped from their files."""
    files = sorted((place / "source").glob("*.npy"))
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}


def bounds(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """First step of each episode, and one past its last: (E,) int64 each."""
    stop = np.flatnonzero(arrays["terminated"] | arrays["truncated"]) + 1
    return np.concatenate([[0], stop[:-1]]), stop


def store_version(place: Path, arrays: Arrays) -> Version:
    """Writes the episodes of a source into a new store in `place`."""

    def episodes() -> Iterator[Episode]:
        for number, (start, stop) in enumerate(zip(*bounds(arrays), strict=True)):
            seen = (arrays["observations"][start:stop], arrays["last_observations"][number][None])
            yield Episode(
                episode_id=f"bench/{number}",
                observations=np.concatenate(seen),  # type: ignore[arg-type]
                actions=arrays["actions"][start:stop],
                rewards=arrays["rewards"][start:stop],
                terminated=bool(arrays["terminated"][stop - 1]),  # type: ignore[arg-type]
                truncated=bool(arrays["truncated"][stop - 1]),  # type: ignore[arg-type]
            )

    return open_store(place / "store", create=True).append(episodes())


def forget(folder: Path) -> None:
    """Asks the kernel to drop all files of a folder from its cache, so that reading reads."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _numbers(steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    length = rng.integers(LENGTH * 9 // 10, LENGTH * 11 // 10 + 1, max(1, round(steps / LENGTH)))
    stop = np.unique(np.minimum(np.cumsum(length), steps))
    stop[-1] = steps
    walked = rng.normal(scale=0.1, size=(steps + len(stop), OBSERVATION)).cumsum(0)
    seen = walked.astype(np.float32)
    step = np.arange(steps)
    row = step + np.searchsorted(stop, step, side="right")  # an episode has one row more than steps
    ends = np.zeros(steps, bool)
    ends[stop - 1] = True
    falls = np.zeros(steps, bool)
    falls[stop - 1] = rng.random(len(stop)) < 0.3
    return {
        "observations": seen[row],
        "next_observations": seen[row + 1],
        "last_observations": seen[row[stop - 1] + 1],
        "actions": np.tanh(rng.normal(size=(steps, ACTION))).astype(np.float32),
        "rewards": rng.normal(1.0, 0.2, steps).astype(np.float32),
        "terminated": ends & falls,
        "truncated": ends & ~falls,
    }


def _pictures(steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    count = -(-steps // STEPS)
    rows = count * (STEPS + 1)
    seen = np.empty((rows, SIDE, SIDE, 3), np.uint8)
    coarse = SIDE // 12
    for number in range(count):
        smooth = rng.integers(16, 200, (1, coarse, coarse, 3), np.uint8)
        large = smooth.repeat(12, 1).repeat(12, 2)
        for frame in range(STEPS + 1):
            at = number * (STEPS + 1) + frame
            noise = rng.integers(0, 8, (SIDE, SIDE, 3), np.uint8)
            seen[at] = np.roll(large[0], frame, axis=1) + noise
    seen[:, 0, 0] = np.arange(rows)[:, None] >> np.array([0, 8, 16]) & 0xFF
    is_last = np.arange(rows) % (STEPS + 1) == STEPS
    truncated = np.tile(np.arange(STEPS) == STEPS - 1, count)
    return {
        "observations": seen[~is_last],
        "last_observations": seen[is_last],
        "actions": rng.normal(size=(len(truncated), ACTION)).astype(np.float32),
        "rewards": rng.normal(size=len(truncated)).astype(np.float32),
        "terminated": np.zeros(len(truncated), bool),
        "truncated": truncated,
    }
