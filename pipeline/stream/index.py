"""Which rows of a version are anchors of transitions, and where those rows lie in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.store.reader import EpisodeIndex
from pipeline.stream.cache_index import CachedBlock
from schemas.errors import UsageError


@dataclass(frozen=True)
class Spans:
    """Where the steps of each episode that is drawn from lie; aligned arrays, one entry each.

    Positions are those of the version's T+1-row layout. The steps that are used are one run of
    transitions, from `begin` to just before `stop`.
    """

    begin: np.ndarray  # (E,) int64, the first step that is used
    stop: np.ndarray  # (E,) int64, one past the last: its next observation
    seen: np.ndarray  # (E,) int64, the last observation that is there
    anchor: np.ndarray  # (E,) int64, the first step that may be drawn
    count: np.ndarray  # (E,) int64, how many from there on may be drawn
    shift: np.ndarray  # (E,) int64, from a position to the row in the cache
    block: np.ndarray  # (E,) int32, which block holds them

    @cached_property
    def number(self) -> np.ndarray:
        """(E,) int64, number of the first transition."""
        found: np.ndarray = np.cumsum(self.count) - self.count
        return found


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
    spans: Spans
    left_out: int
    """Last steps that are no transitions: cut off, and their next observation is not known."""
    not_kept: int = 0
    """Transitions outside the steps that `keep_start` and `keep_stop` keep; they are not drawn."""
    too_short: int = 0
    """Transitions whose window would leave the episode."""
    unfinished: int = 0
    """Transitions of episodes whose return is not known, as their end is not."""

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def owner(self) -> np.ndarray:
        """(N,) int32, the episode of each transition; made where a sampler asks for it."""
        return np.repeat(np.arange(len(self.starts), dtype=np.int32), self.spans.count)

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
        found: np.ndarray = self.episode_ids[self._episodes_at(positions)]
        return found

    def numbers_at(self, positions: np.ndarray) -> np.ndarray:
        """Returns which transitions have their anchors at some positions; inverse of `find`.

        Raises:
            UsageError: if one is the anchor of none.
        """
        episodes, spans = self._episodes_at(positions), self.spans
        within = positions - spans.anchor[episodes]
        is_none = (episodes < 0) | (within < 0) | (within >= spans.count[episodes])
        if is_none.any():
            raise UsageError(
                f"Expected indices of batches of this stream, came {positions[is_none][0]}, from "
                f"which nothing is drawn."
            )
        found: np.ndarray = spans.number[episodes] + within
        return found

    def _episodes_at(self, positions: np.ndarray) -> np.ndarray:
        episodes = np.searchsorted(self.starts, positions.reshape(-1), side="right") - 1
        return episodes.reshape(positions.shape)


def transition_index(
    index: EpisodeIndex,
    cached: Mapping[str, CachedBlock],
    kept: np.ndarray | None = None,
    *,
    room: tuple[int, int] = (0, 1),
    finished: bool = False,
) -> TransitionIndex:
    """Lists every transition: each step but the last, and the last where its end is known.

    Steps outside an episode's kept range begin none. A terminated last step always is a
    transition; any other needs the true final observation (`schemas.episode.has_transition`).

    Args:
        index: the version's episodes.
        cached: where its blocks lie in the cache.
        kept: (E,) bool, episodes to draw from; None takes all. Positions count all rows of the
            version either way.
        room: steps that an anchor must have before it, and from it on, within what is kept.
        finished: True leaves out episodes that were cut off and whose end is not known.
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
    is_finished = is_whole | (first + count < all_of_them)
    unfinished = int(count[kept & ~is_finished].sum()) if finished else 0
    used = np.where(is_finished | (not finished), count, 0)
    room_for = np.maximum(used - sum(room) + 1, 0)
    is_seen = index.final_present | (first + count < index.length)
    spans = Spans(
        begin=(starts + first)[kept],
        stop=(starts + first + count)[kept],
        seen=(starts + first + count - ~is_seen)[kept],
        anchor=(starts + first + room[0])[kept],
        count=room_for[kept],
        shift=(offsets[index.data] + index.row_start - starts)[kept],
        block=index.data[kept],
    )
    table, shift = _table(spans)
    return TransitionIndex(
        table=table,
        shift=shift,
        starts=starts[kept],
        episode_ids=index.episode_ids[kept],
        spans=spans,
        left_out=int(((index.length > 0) & ~is_whole)[kept].sum()),
        not_kept=int((all_of_them - count)[kept].sum()),
        too_short=int((used - room_for)[kept].sum()),
        unfinished=unfinished,
    )


def _table(spans: Spans) -> tuple[np.ndarray, int | None]:
    """Positions of all anchors and the shift to their rows, or both side by side and None."""
    shift, count = spans.shift, spans.count
    within = np.arange(count.sum()) - np.repeat(spans.number, count)
    positions = np.repeat(spans.anchor, count) + within
    is_shifted = len(shift) > 0 and bool((shift == shift[0]).all())
    rows = positions + np.repeat(shift, count)
    table = positions if is_shifted else np.stack([positions, rows], axis=1)
    # 32 bits where they suffice for all that is computed from the table.
    is_small = max(part.max(initial=0) for part in (positions, rows, shift)) < 2**31
    return table.astype(np.int32) if is_small else table, int(shift[0]) if is_shifted else None
