"""From numbers of transitions to batches: one gather, then views.

Many batches are gathered at once: the rows of all their samples, each with the row after it, in
one `take` over the packed records. What a batch holds are views into that, so a batch costs no
copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.stream import plan
from pipeline.stream.returns import NStep
from pipeline.stream.samplers import Draw, Drawn, sampler_named
from pipeline.stream.source import OpenVersion
from pipeline.stream.windows import gather_slots, window_columns
from schemas.nesting import nest
from schemas.stream import StreamConfig

Batch = dict[str, Any]
Split = Callable[[np.ndarray], Sequence[Any]]
"""Turns (steps, rows, ...) into one array or tensor (rows, ...) per step."""

SPAN = 2  # records gathered per transition: the anchor and the next


def draw(opened: OpenVersion, asked: Draw) -> Drawn:
    """Returns what a version's sampler draws, with random words for the goals if it has some."""
    drawn = sampler_named(opened.config.sampler).draw(asked, opened.index, opened.table)
    if opened.windowed is not None:
        # From the first of these rows on: chunks that they come from must not make room.
        place = int(asked.before[0])
        opened.windowed.expect(opened.table.coming(place, asked.seed, asked.domain))
    if opened.goals is None:
        return drawn
    words = asked.words(plan.GOAL_KIND), asked.words(plan.GOAL_PLACE)
    return replace(drawn, goal_words=words)


def columns(opened: OpenVersion, drawn: Drawn) -> dict[str, np.ndarray]:
    """Returns everything batches hold, by flat name, for some transitions.

    Args:
        opened: the version.
        drawn: transitions of its index, any shape.

    Returns:
        Arrays of the shape of `drawn.numbers`, then the axes of windows, then the field's own
        shape. After a terminated step the discount is 0 and the next observation one that nothing
        should read.
    """
    config, index, numbers = opened.config, opened.index, drawn.numbers
    anchors, positions = index.find(numbers)
    steps = positions
    if config.is_windowed:
        slots = gather_slots(opened, numbers, anchors, positions)
        found = window_columns(opened, slots)
        if opened.sums.returns is not None or opened.goals is not None:
            steps = slots.along(slots.positions)
    else:
        found = _transitions(opened, anchors, positions)
    if opened.sums.n_step is not None:
        found |= _n_steps(opened, opened.sums.n_step, numbers, anchors, positions)
    if opened.sums.returns is not None:
        inside = found["mask"] > 0 if config.has_steps else np.ones(steps.shape, bool)
        found |= opened.sums.to_go(steps, inside)
    if opened.goals is not None and drawn.goal_words is not None:
        rows, places = opened.goals.draw(index, numbers, positions, drawn.goal_words)
        records = opened.take(rows[..., None])
        found["goals"] = opened.layout.view(records, opened.goals.field)
        if config.goal_rewards:
            found |= _goal_rewards(config, found, steps, places)
            found.pop("rewards_mask", None)
    if drawn.weights is not None:
        found["weights"] = drawn.weights.astype(found["discounts"].dtype)
    found["indices"] = positions.astype(np.int64)
    if config.episode_ids:
        found["episode_ids"] = index.ids_at(found["indices"])
    return found


def _transitions(
    opened: OpenVersion, anchors: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """What a batch holds of anchors and where they lead to; single transitions."""
    layout, config, n_step = opened.layout, opened.config, opened.sums.n_step
    anchors = anchors.astype(np.int64)
    if n_step is None and opened.has_runs(SPAN):
        records = opened.take_runs(anchors, SPAN)
    else:
        ahead = 1 if n_step is None else np.take(n_step.ahead, positions)
        records = opened.take(np.stack([anchors, anchors + ahead], axis=-1))

    real = np.float64 if config.dtype == "float64" else np.float32
    found = {name: layout.view(records, name) for name in layout.names("observations")}
    for root in ("actions", "rewards", "extras"):
        found |= {name: layout.view(records, name) for name in layout.names(root)}
    for name, mine in opened.added.items():
        found[name] = mine.over(positions, found.get(name))
    for name in layout.names("observations"):
        found[f"next_{name}"] = layout.view(records, name, ahead=1)
    found["terminated"] = layout.view(records, "terminated")
    found["truncated"] = layout.view(records, "truncated")
    found["discounts"] = np.multiply(~found["terminated"], config.discount, dtype=real)
    found["mask"] = np.ones(anchors.shape, real)
    for root in sorted(opened.lacks):
        found[f"{root}_mask"] = layout.view(records, f"has_{root}").astype(real)
        beside = opened.added.get(root)
        if beside is not None and beside.has is not None:
            np.maximum(found[f"{root}_mask"], beside.has[positions], out=found[f"{root}_mask"])
    return found


def _n_steps(
    opened: OpenVersion,
    n_step: NStep,
    numbers: np.ndarray,
    anchors: np.ndarray,
    positions: np.ndarray,
) -> dict[str, np.ndarray]:
    """What several steps collect and where they end."""
    layout, config = opened.layout, opened.config
    found = {name: np.take(sums, positions, axis=0) for name, sums in n_step.rewards.items()}
    for name in ("terminated", "truncated", "discounts"):
        found[name] = np.take(getattr(n_step, name), positions)
    if config.is_windowed:
        frames = np.arange(1 - config.frame_stack, 1)
        last = (positions + np.take(n_step.ahead, positions)).astype(np.int64)
        begin = opened.index.spans.begin[opened.index.owner[numbers]]
        rows = np.maximum(last[..., None] + frames, begin[..., None])
        rows += (anchors.astype(np.int64) - positions)[..., None]
        records = opened.take(rows)
        for name in layout.names("observations"):
            seen = layout.slots(records, name)
            is_stacked = config.frame_stack > 1
            found[f"next_{name}"] = seen if is_stacked else seen[(slice(None),) * last.ndim + (0,)]
    return found


def _goal_rewards(
    config: StreamConfig,
    found: Mapping[str, np.ndarray],
    steps: np.ndarray,
    goals: np.ndarray,
) -> dict[str, np.ndarray]:
    """Rewards of -1, and 0 where the goal is reached, which ends what is worth bootstrapping."""
    real = found["discounts"].dtype
    goals = goals[..., None] if config.has_steps else goals
    mask = found["mask"] if config.has_steps else np.ones(steps.shape, real)
    reached = (steps == goals) & (mask > 0)
    return {
        "rewards": (reached - mask).astype(real),
        "terminated": found["terminated"] | reached,
        "discounts": np.where(reached, 0, found["discounts"]).astype(real),
    }


def split_batches(found: Mapping[str, np.ndarray], split: Split) -> list[Batch]:
    """Returns one batch per step, nested fields as nested mappings.

    Args:
        found: (steps, rows, ...) arrays by flat name.
        split: how an array becomes one view per step; object arrays stay NumPy.
    """
    views = {
        name: list(array) if array.dtype == object else split(array)
        for name, array in found.items()
    }
    roots = list(dict.fromkeys(name.split("/", 1)[0] for name in views))
    steps = len(next(iter(views.values())))
    batches = [{name: view[step] for name, view in views.items()} for step in range(steps)]
    if roots == list(views):
        return batches
    return [{root: nest(root, flat) for root in roots} for flat in batches]


def rows_per_gather(
    row_bytes: int, rows: int, most: int = 64, budget: int = 12 << 20, span: int = SPAN
) -> int:
    """Returns how many batches to gather at once: many, but within a cache-friendly budget."""
    return max(1, min(most, budget // max(1, span * row_bytes * rows)))


def gathered_at_once(opened: OpenVersion, rows: int) -> int:
    """Returns how many batches of some rows to gather at once."""
    config = opened.config
    if config.sampler == "prioritised":
        return 1  # the next batch waits for the priorities of this one
    span = sum(config.reach) + 1 if config.is_windowed else SPAN
    return rows_per_gather(opened.layout.size, rows, span=span)
