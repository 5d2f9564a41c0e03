"""Batches whose rows are more than one transition: windows, action chunks, stacked frames.

All records that a row needs follow each other in its episode, so they are gathered together, each
once, and what a batch holds are overlapping views into them. Where a row leaves its episode the
nearest record stands in; only those places are then written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.stream.source import OpenVersion
from schemas.stream import StreamConfig


@dataclass(frozen=True)
class Slots:
    """The records around each anchor, and which of them are steps of its episode."""

    records: np.ndarray  # (..., S, words) int32
    positions: np.ndarray  # (..., S) int64 in the version's row layout, the nearest step outside
    is_step: np.ndarray  # (..., S) bool
    last: np.ndarray  # (...) int64, slot of the last step that may be repeated
    is_padded: bool
    """True if some slot is no step."""
    config: StreamConfig

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
        found, axis = values.copy(), self.records.ndim - 2
        outside = ~self.is_step
        if self.config.frame_stack > 1:  # frames are missing before the episode alone
            found[outside & (np.arange(outside.shape[-1]) < self.config.reach[0])] = 0
        elif following:
            _part(found, axis, 1, outside.shape[-1])[outside[..., :-1]] = 0
        else:
            found[outside] = 0
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
        if has_more:
            values = sliding_window_view(values, more, axis, writeable=True)
            values = np.moveaxis(values, -1, axis + 1)
        return values if config.has_steps else values[(slice(None),) * axis + (0,)]


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
    episodes = opened.index.owner[numbers]
    begin, stop = spans.begin[episodes][..., None], spans.stop[episodes][..., None]
    at = positions.astype(np.int64)[..., None] + np.arange(-before, after + 1)
    is_step = (at >= begin) & (at < stop)
    is_padded = not is_step[..., :-1].all()
    np.clip(at, begin, stop, out=at)
    shift = anchors.astype(np.int64) - positions
    records = np.take(opened.records, at + shift[..., None], axis=0, mode="clip")
    # The row after the last step is its next observation and no step.
    np.minimum(at, stop - 1, out=at)
    last = stop[..., 0] - 1 - positions + before
    return Slots(records, at, is_step, last, is_padded, config)


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
    for name in ("terminated", "truncated"):
        late[name] = slots.along(layout.slots(slots.records, name) & slots.is_step)
    mask = slots.along(slots.is_step)
    late["discounts"] = np.where(mask & ~late["terminated"], config.discount, 0).astype(real)
    late |= _masks(slots, mask, real)
    for root in sorted(opened.lacks):
        has = layout.slots(slots.records, f"has_{root}").astype(real)
        beside = opened.added.get(root)
        if beside is not None and beside.has is not None:
            has = np.maximum(has, beside.has[slots.positions])
        late[f"{root}_mask"] = slots.along(has * slots.is_step, chunk=root == "actions")
    return found | late


def _masks(slots: Slots, mask: np.ndarray, real: type) -> dict[str, np.ndarray]:
    config = slots.config
    found: dict[str, np.ndarray] = {"mask": mask.astype(real)}
    if config.action_chunk is not None:
        chunk: np.ndarray = slots.along(slots.is_step, chunk=True).astype(real)
        found["action_chunk_mask" if config.has_steps else "mask"] = chunk
    if config.frame_stack > 1:
        found["frame_stack_mask"] = slots.along(slots.is_step, stack=True).astype(real)
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
    outside = ~slots.is_step
    if name.split("/", 1)[0] == "rewards" or config.pad == "zero":
        values[outside] = 0
        return values
    where = np.nonzero(outside & (np.arange(outside.shape[-1]) > slots.last[..., None]))
    values[where] = values[(*where[:-1], slots.last[where[:-1]])]
    return values


def _part(values: np.ndarray, axis: int, first: int, count: int) -> np.ndarray:
    return values[(slice(None),) * axis + (slice(first, first + count),)]
