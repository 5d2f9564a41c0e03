"""Batches whose rows are more than one transition: windows, action chunks, stacked frames.

All records that a row needs follow each other in its episode, so they are gathered together, each
once, and what a batch holds are overlapping views into them: a copy of the next observations would
take a quarter of all the time again for windows of numbers, four fifths for those of pictures.
Where a row leaves its episode the nearest record stands in; only those places are then written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.stream.source import OpenVersion
from schemas.stream import StreamConfig


@dataclass(frozen=True)
class Slots:
    """The records around each anchor, and which of them are steps of its episode."""

    records: np.ndarray  # (..., S, words) int32
    start: np.ndarray  # (..., 1) int64, position of the first slot in the version's row layout
    steps: tuple[np.ndarray, np.ndarray]  # (..., 1) int64, the first slot in the episode; one past
    outside: np.ndarray  # (n,) int64, which slots are no steps, counted through all windows
    config: StreamConfig

    @property
    def is_padded(self) -> bool:
        """True if some slot is no step."""
        return len(self.outside) > 0

    @cached_property
    def positions(self) -> np.ndarray:
        """(..., S) int64 in the version's row layout, of the nearest step outside the episode."""
        slots = np.arange(self.records.shape[-2])
        return self.start + np.clip(slots, self.steps[0], self.steps[1] - 1)

    @cached_property
    def late(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots after the last step of their episode, and that step, counted as in `outside`.

        Before the episode its first record stands in already; after it, one without a step.
        """
        count = self.records.shape[-2]
        window = self.outside // count
        last = window * count + self.steps[1].reshape(-1)[window] - 1
        is_after = self.outside > last
        return self.outside[is_after], last[is_after]

    def mask(self, dtype: type) -> np.ndarray:
        """Returns which slots are steps, (..., S): 1 and 0."""
        found: np.ndarray = np.ones(self.records.shape[:-1], dtype)
        found.reshape(-1)[self.outside] = 0
        return found

    def along(self, values: np.ndarray, *, stack: bool = False, chunk: bool = False) -> np.ndarray:
        """Returns the part of (..., S, *shape) that a batch holds, with its axes.

        Args:
            values: one entry per slot.
            stack: whether each step carries the frames up to it.
            chunk: whether each step carries what comes from it on.

        Returns:
            (..., *axes, *shape): the axis of steps, if the settings have one, then the other.
        """
        return self._axes(values, self.config.frame_stack - 1, stack, chunk)

    def following(self, values: np.ndarray) -> np.ndarray:
        """Returns `along` with stacked frames, one step later."""
        return self._axes(values, self.config.frame_stack, True, False)

    def zeroed(self, values: np.ndarray, *, following: bool = False) -> np.ndarray:
        """Returns a copy of observations by slot that is 0 where they are of no step.

        Args:
            values: (..., S, *shape).
            following: whether they are the observations after steps.
        """
        found = values.copy()
        where = self.outside
        if self.config.frame_stack > 1:  # frames are missing before the episode alone
            where = where[where % self.records.shape[-2] < self.config.reach[0]]
        elif following:
            where = where + 1
        _by_slot(found, self.records.ndim - 1)[where] = 0
        return found

    def _axes(self, values: np.ndarray, first: int, stack: bool, chunk: bool) -> np.ndarray:
        config, axis = self.config, self.records.ndim - 2
        more = 1
        if stack and config.frame_stack > 1:
            more, first = config.frame_stack, first - config.frame_stack + 1
        elif chunk and config.action_chunk is not None:
            more = config.action_chunk
        steps = config.history + (config.window or 1)
        values = _part(values, axis, first, steps + more - 1)
        has_more = more > 1 or (chunk and config.action_chunk is not None)
        if not config.has_steps:  # what one step carries is all there is
            return values if has_more else values[(slice(None),) * axis + (0,)]
        if has_more:
            values = sliding_window_view(values, more, axis, writeable=True)
            values = np.moveaxis(values, -1, axis + 1)
        return values


def gather_slots(
    opened: OpenVersion, numbers: np.ndarray, anchors: np.ndarray, positions: np.ndarray
) -> Slots:
    """Gathers the records around some anchors.

    Args:
        opened: the version.
        numbers: of transitions in its index, any shape.
        anchors: their rows in the cache.
        positions: their positions in the version's row layout.
    """
    config, spans = opened.config, opened.index.spans
    before, after = config.reach
    slots = np.arange(before + after + 1)
    episodes = opened.index.owner[numbers]
    start = positions.astype(np.int64)[..., None] - before
    first, stop = (edge[episodes][..., None] - start for edge in (spans.begin, spans.stop))
    # Most windows lie within their episode; the others are put right one by one. The last slot
    # is there for the next observation alone and is never read as a step.
    crossing = np.flatnonzero((first > 0) | (stop < len(slots) - 1))[:, None]
    low, high = first.reshape(-1)[crossing], stop.reshape(-1)[crossing]
    is_outside = (slots < low) | (slots >= high)
    is_outside[:, -1] = False
    outside = (crossing * len(slots) + slots)[is_outside]
    rows = anchors.astype(np.int64) - before
    records = _records(opened, rows, crossing, np.clip(slots, low, high))
    return Slots(records, start, (first, stop), outside, config)


def _records(
    opened: OpenVersion, first: np.ndarray, crossing: np.ndarray, nearest: np.ndarray
) -> np.ndarray:
    """Gathers windows of records, the nearest of their episode for those that are outside.

    Args:
        opened: the version.
        first: (...) int64, row of the first slot, which may be of another episode, or none.
        crossing: (C, 1) int64, numbers of the windows that leave their episode.
        nearest: (C, S) int64, the slot that stands in for each of theirs.
    """
    count = nearest.shape[1]
    slots = np.arange(count)
    if not opened.has_runs(count):
        rows = first[..., None] + slots
        rows.reshape(-1, count)[crossing[:, 0]] = first.reshape(-1)[crossing] + nearest
        return opened.take(rows)
    begin = np.clip(first, 0, len(opened.records) - count)
    records = opened.take_runs(begin, count)
    if not len(crossing):
        return records
    wanted = nearest + (first - begin).reshape(-1)[crossing]
    is_other = wanted != slots
    window = crossing * count
    _repeat(
        _by_slot(records, first.ndim + 1), (window + slots)[is_other], (window + wanted)[is_other]
    )
    return records


def window_columns(opened: OpenVersion, slots: Slots) -> dict[str, np.ndarray]:
    """Returns what a batch holds of the records around its anchors, by flat name."""
    layout, config = opened.layout, opened.config
    found: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for name in layout.names("observations"):
        values = layout.slots(slots.records, name)
        following = values
        if config.pad == "zero" and slots.is_padded:
            # A record is the observation of one step and the next one of another.
            values, following = slots.zeroed(values), slots.zeroed(values, following=True)
        found[name] = slots.along(values, stack=True)
        late[f"next_{name}"] = slots.following(following)
    for root in ("actions", "rewards", "extras"):
        names = [*layout.names(root), *(n for n in opened.added if n.split("/", 1)[0] == root)]
        for name in dict.fromkeys(names):
            values = _step_field(opened, slots, name)
            found[name] = slots.along(values, chunk=root == "actions")
    real = np.float64 if config.dtype == "float64" else np.float32
    mask = slots.mask(real)
    for name in ("terminated", "truncated"):
        flags = layout.slots(slots.records, name)
        _by_slot(flags, flags.ndim)[slots.outside] = False
        late[name] = slots.along(flags)
    late["discounts"] = slots.along(mask) * real(config.discount)
    np.copyto(late["discounts"], 0, where=late["terminated"])
    late |= _masks(slots, mask)
    for root in sorted(opened.lacks):
        has = layout.slots(slots.records, f"has_{root}").astype(real)
        beside = opened.added.get(root)
        if beside is not None and beside.has is not None:
            has = np.maximum(has, beside.has[slots.positions])
        late[f"{root}_mask"] = slots.along(has * mask, chunk=root == "actions")
    return found | late


def _masks(slots: Slots, mask: np.ndarray) -> dict[str, np.ndarray]:
    config = slots.config
    found = {"mask": slots.along(mask)}
    if config.action_chunk is not None:
        name = "action_chunk_mask" if config.has_steps else "mask"
        found[name] = slots.along(mask, chunk=True)
    if config.frame_stack > 1:
        found["frame_stack_mask"] = slots.along(mask, stack=True)
    return found


def _step_field(opened: OpenVersion, slots: Slots, name: str) -> np.ndarray:
    """A field of steps by slot, (..., S, *shape), padded as the settings say."""
    layout, config = opened.layout, opened.config
    values = layout.slots(slots.records, name) if name in layout.by_name else None
    if name in opened.added:
        values = opened.added[name].over(slots.positions, values)
    assert values is not None, "a field is in the records or was added"
    if not slots.is_padded:
        return values
    by_slot = _by_slot(values, slots.records.ndim - 1)
    if name.split("/", 1)[0] == "rewards" or config.pad == "zero":
        by_slot[slots.outside] = 0
    else:
        _repeat(by_slot, *slots.late)
    return values


def _by_slot(values: np.ndarray, axes: int) -> np.ndarray:
    """Views (..., S, *shape) as (n, *shape); `axes` is how many come before the shape."""
    count = math.prod(values.shape[:axes])
    return values.reshape(count, *values.shape[axes:], copy=False)


def _repeat(by_slot: np.ndarray, to: np.ndarray, of: np.ndarray) -> None:
    """Writes what some slots hold, (n, *shape), to others."""
    if by_slot.size:
        items = by_slot.reshape(len(by_slot), -1, copy=False)
        # One item per slot, however many numbers it has, takes less than half the time.
        items = items.view((np.void, items.itemsize * items.shape[1]))[:, 0]
        items[to] = items[of]


def _part(values: np.ndarray, axis: int, first: int, count: int) -> np.ndarray:
    return values[(slice(None),) * axis + (slice(first, first + count),)]
