"""What a gather from records on a device needs of the host: rows, and what lies beside records.

Everything that decides what is drawn is computed here, from the same index and by the same plan as
for any other residency. What is sent is small: a few numbers per row instead of its record.
`pipeline.stream.on_device` makes the columns of it that `pipeline.stream.batches` makes on the
host, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.stream.samplers import Drawn
    from pipeline.stream.source import OpenVersion

PAIRS, ANCHORS, FIRST, STOP = "rows/pairs", "rows/anchors", "rows/first", "rows/stop"
NEXT, GOALS, REACHED = "rows/next", "rows/goals", "reached/goals"
OVER, HAS = "over/", "has/"
"""Before the name of a field that was added: its values, and where it has any."""
FOR_DEVICE = ("rows/", "reached/", OVER, HAS)
"""Prefixes of what is read on the device; all else are columns as they are."""


def plan_columns(opened: OpenVersion, drawn: Drawn) -> dict[str, np.ndarray]:
    """Returns what is to be sent for some transitions: as for `batches.columns`."""
    config, index, numbers = opened.config, opened.index, drawn.numbers
    real = np.float64 if config.dtype == "float64" else np.float32
    anchors, positions = index.find(numbers)
    steps, inside = positions, np.ones(positions.shape, bool)
    if config.is_windowed:
        found, steps, inside = _windows(opened, numbers, anchors, positions)
    else:
        found = _pairs(opened, anchors, positions)
    if opened.sums.n_step is not None:
        found |= _n_steps(opened, numbers, anchors, positions)
    found |= opened.sums.to_go(steps, inside)
    if opened.goals is not None and drawn.goal_words is not None:
        rows, places = opened.goals.draw(index, numbers, positions, drawn.goal_words)
        found[GOALS] = rows.astype(np.int64)
        if config.goal_rewards:
            places = places[..., None] if config.has_steps else places
            found[REACHED] = (steps == places) & inside
            found["rewards"] = (found[REACHED] - inside.astype(real)).astype(real)
    if drawn.weights is not None:
        found["weights"] = drawn.weights.astype(real)
    found["indices"] = positions.astype(np.int64)
    if config.episode_ids:
        found["episode_ids"] = index.ids_at(found["indices"])
    return found


def _pairs(
    opened: OpenVersion, anchors: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of single transitions, each with the one that it leads to."""
    n_step = opened.sums.n_step
    ahead = 1 if n_step is None else np.take(n_step.ahead, positions)
    pairs = np.stack([anchors, anchors + ahead], axis=-1).astype(np.int64, copy=False)
    return {PAIRS: pairs, **_added(opened, positions)}


def _windows(
    opened: OpenVersion, numbers: np.ndarray, anchors: np.ndarray, positions: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Anchors, and the slots around each that are steps of its episode: from the first, to a stop.

    Also the positions of the steps that a batch holds, and which of them are in the episode.
    """
    config, spans = opened.config, opened.index.spans
    before, after = config.reach
    episodes = opened.index.owner[numbers]
    start = positions.astype(np.int64) - before
    first, stop = spans.begin[episodes] - start, spans.stop[episodes] - start
    found = {ANCHORS: anchors.astype(np.int64), FIRST: first, STOP: stop}
    start, first, stop = start[..., None], first[..., None], stop[..., None]
    slots = np.arange(before + after + 1)
    found |= _added(opened, start + np.clip(slots, first, stop - 1))
    held = slots[config.frame_stack - 1 :][: config.history + (config.window or 1)]
    steps = start + np.clip(held, first, stop - 1)
    inside = (held >= first) & (held < stop)
    return (found, steps, inside) if config.has_steps else (found, steps[..., 0], inside[..., 0])


def _added(opened: OpenVersion, positions: np.ndarray) -> dict[str, np.ndarray]:
    """What was added to the steps at some positions."""
    found = {}
    for name, mine in opened.added.items():
        found[OVER + name] = np.take(mine.values, positions, axis=0)
        if mine.has is not None:
            found[HAS + name] = np.take(mine.has, positions)
    return found


def _n_steps(
    opened: OpenVersion, numbers: np.ndarray, anchors: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """What several steps collect, and the rows where they end if windows do not hold those."""
    config, n_step = opened.config, opened.sums.n_step
    assert n_step is not None, "asked for several steps"
    found = {name: np.take(sums, positions, axis=0) for name, sums in n_step.rewards.items()}
    for name in ("terminated", "truncated", "discounts"):
        found[name] = np.take(getattr(n_step, name), positions)
    if config.is_windowed:
        frames = np.arange(1 - config.frame_stack, 1)
        last = (positions + np.take(n_step.ahead, positions)).astype(np.int64)
        begin = opened.index.spans.begin[opened.index.owner[numbers]]
        rows = np.maximum(last[..., None] + frames, begin[..., None])
        found[NEXT] = rows + (anchors.astype(np.int64) - positions)[..., None]
    return found
