"""Episodes side by side, so that estimators run on thousands of rows at a time.

A block holds whole episodes of one layout. Blocks are the unit of vectorised work; how episodes
fall into them changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.quality.features import Features, Layout, extract
from schemas.episode import Episode
from schemas.metrics import FeatureSpec

BLOCK_VALUES = 1 << 20
"""Numbers that a block's rows hold at most, unless a single episode is larger."""


@dataclass(frozen=True)
class Block:
    """Rows of some whole episodes of one layout."""

    layout: Layout
    positions: np.ndarray  # (E,) int64, the episodes' positions in the stream
    lengths: np.ndarray  # (E,) int64, rows of each
    states: np.ndarray  # (N, S) float64
    changes: np.ndarray  # (N, D) float64
    actions: np.ndarray  # (N, A) float64
    targets: np.ndarray  # (N, A') float64
    acting: np.ndarray  # (N,) bool
    moving: np.ndarray  # (N,) bool
    faulty_actions: np.ndarray  # (E,) int64
    faulty_transitions: np.ndarray  # (E,) int64
    fingerprints: np.ndarray  # (E,) uint64

    @property
    def episodes(self) -> np.ndarray:
        """(N,) int64, index within the block of the episode that each row belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def steps(self) -> np.ndarray:
        """(N,) int64, index t of each row within its episode."""
        ends = np.cumsum(self.lengths)
        starts = np.repeat(ends - self.lengths, self.lengths)
        return np.asarray(np.arange(int(ends[-1])) - starts)


def blocks(
    episodes: Iterable[Episode], spec: FeatureSpec, values: int = BLOCK_VALUES
) -> Iterator[Block]:
    """Groups a stream of episodes into blocks; episodes without features are left out.

    Args:
        episodes: in any order, of any specs and tasks.
        spec: which arrays count as state and action.
        values: numbers held back at most, over all layouts, before blocks are handed on.
    """
    waiting: dict[Layout, list[tuple[int, Features]]] = {}
    held = 0
    for position, episode in enumerate(episodes):
        features = extract(episode, spec)
        if features is None:
            continue
        waiting.setdefault(features.layout, []).append((position, features))
        held += 2 * (features.states.size + features.actions.size)
        if held >= values:
            yield from map(_join, waiting.values())
            waiting, held = {}, 0
    yield from map(_join, waiting.values())


def _join(entries: list[tuple[int, Features]]) -> Block:
    rows = [features for _, features in entries]
    return Block(
        layout=rows[0].layout,
        positions=np.array([position for position, _ in entries]),
        lengths=np.array([len(f.states) for f in rows]),
        states=np.concatenate([f.states for f in rows]),
        changes=np.concatenate([f.changes for f in rows]),
        actions=np.concatenate([f.actions for f in rows]),
        targets=np.concatenate([f.targets for f in rows]),
        acting=np.concatenate([f.acting for f in rows]),
        moving=np.concatenate([f.moving for f in rows]),
        faulty_actions=np.array([f.faulty_actions for f in rows]),
        faulty_transitions=np.array([f.faulty_transitions for f in rows]),
        fingerprints=np.array([f.fingerprint for f in rows], np.uint64),
    )
