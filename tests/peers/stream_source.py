"""The arrays that the stream benchmark's contenders make their own formats of.

Each `stream_with_<peer>.py` has a function per workload: `l1` (transitions), `l2` (windows) and
`l4` (windows of pictures) return what makes one batch, `l3` yields one shuffled epoch. Batches are
(observations, actions, rewards, next observations, terminated), or (observations, actions, rewards,
mask); rows first. Further ways of the same library have a name after that: `l1_many`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

BATCH, WINDOW, WINDOWS, FRAMES, CLIPS, SIDE = 256, 64, 32, 3, 64, 84
NAMES = {"terminated": "terminals", "truncated": "timeouts"}
"""Ours and D4RL's names, where they differ."""


def arrays(place: Path) -> dict[str, np.ndarray]:
    """All arrays in memory, by D4RL's names."""
    files = sorted((place / "source").glob("*.npy"))
    return {NAMES.get(file.stem, file.stem): np.load(file, allow_pickle=False) for file in files}


def episodes(d: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """First step of each episode, and one past its last."""
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
