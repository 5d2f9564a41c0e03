"""Which rows of a version are anchors of transitions, and where those rows lie in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.store.reader import EpisodeIndex
from pipeline.stream.cache import CachedBlock


@dataclass(frozen=True)
class TransitionIndex:
    """All transitions of a version, in version order."""

    table: np.ndarray
    """Where anchors are; look-ups in it are bound by memory, so it is as narrow as it can be:
    (N,) int32 or int64 positions if `shift` tells the rows, else (N, 2) of both."""
    shift: int | None
    """From a position to the row in the cache, where that is the same for all."""
    starts: np.ndarray  # (E,) int64, first row of each kept episode in the version's layout
    episode_ids: np.ndarray  # (E,) object
    left_out: int
    """Last steps that are no transitions: cut off, and their next observation is not known."""
    not_kept: int = 0
    """Transitions outside the steps that `keep_start` and `keep_stop` keep; they are not drawn."""

    def __len__(self) -> int:
        return len(self.table)

    def find(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where some transitions' anchors are, each of the shape of `numbers`.

        Args:
            numbers: of transitions, in [0, N).

        Returns:
            Rows in the cache, and positions in the version's T+1-row layout.
        """
        if self.shift is not None:
            positions = np.take(self.table, numbers, mode="clip")
            return positions + self.shift, positions
        if self.table.dtype == np.int32:  # one look-up of eight bytes fetches both
            pairs = np.take(self.table.view(np.int64)[:, 0], numbers, mode="clip")
            both = pairs.view(np.int32).reshape(*numbers.shape, 2)
        else:
            both = np.take(self.table, numbers, axis=0, mode="clip")
        return both[..., 1], both[..., 0]

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        """Returns the ids of the episodes that hold some rows of the version's layout."""
        episodes = np.searchsorted(self.starts, positions.reshape(-1), side="right") - 1
        return self.episode_ids[episodes].reshape(positions.shape)


def transition_index(
    index: EpisodeIndex, cached: Mapping[str, CachedBlock], kept: np.ndarray | None = None
) -> TransitionIndex:
    """Lists every transition: each step but the last, and the last where its end is known.

    Steps outside an episode's kept range begin none. A terminated last step always is a
    transition; any other needs the true final observation (`schemas.episode.has_transition`).

    Args:
        index: the version's episodes.
        cached: where its blocks lie in the cache.
        kept: (E,) bool, episodes to draw from; None takes all. Positions count all rows of the
            version either way.
    """
    starts = np.cumsum(index.length + 1) - (index.length + 1)
    is_whole = index.terminated | index.final_present
    count = np.maximum(index.length - ~is_whole, 0)
    first, all_of_them = np.zeros_like(count), count
    if index.keep is not None:
        first = np.minimum(index.keep[:, 0], count)
        count = np.minimum(index.keep[:, 1], count) - first
    kept = np.ones(len(count), bool) if kept is None else kept
    offsets = np.array(
        [cached[name].start if name in cached else 0 for name in index.data_ids], np.int64
    )
    shift = offsets[index.data] + index.row_start - starts
    not_kept = int((all_of_them - count)[kept].sum())
    starts, count, shift = starts[kept], count[kept], shift[kept]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    positions = np.repeat(starts + first[kept], count) + within
    is_shifted = len(shift) > 0 and bool((shift == shift[0]).all())
    rows = positions + np.repeat(shift, count)
    table = positions if is_shifted else np.stack([positions, rows], axis=1)
    # 32 bits where they suffice for all that is computed from the table.
    is_small = max(part.max(initial=0) for part in (positions, rows, shift)) < 2**31
    return TransitionIndex(
        table=table.astype(np.int32) if is_small else table,
        shift=int(shift[0]) if is_shifted else None,
        starts=starts,
        episode_ids=index.episode_ids[kept],
        left_out=int(((index.length > 0) & ~is_whole)[kept].sum()),
        not_kept=not_kept,
    )
