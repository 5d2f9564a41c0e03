"""From numbers of transitions to batches: one gather, then views.

Many batches are gathered at once: the rows of all their samples, each with the row after it, in
one `take` over the packed records. What a batch holds are views into that, so a batch costs no
copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.stream.source import OpenVersion
from schemas.nesting import nest
from schemas.stream import StreamConfig

Batch = dict[str, Any]
Split = Callable[[np.ndarray], Sequence[Any]]
"""Turns (steps, rows, ...) into one array or tensor (rows, ...) per step."""

SPAN = 2  # records gathered per transition: the anchor and the next


def columns(
    opened: OpenVersion, numbers: np.ndarray, config: StreamConfig
) -> dict[str, np.ndarray]:
    """Returns everything batches hold, by flat name, for some transitions.

    Args:
        opened: the version.
        numbers: of transitions in its index, any shape.
        config: the stream's settings.

    Returns:
        Arrays of the shape of `numbers` followed by the field's own shape. After a terminated step
        the discount is 0 and the next observation one that nothing should read.
    """
    layout, index = opened.layout, opened.index
    anchors, positions = index.find(numbers)
    pairs = np.empty((*numbers.shape, SPAN), np.int64)
    pairs[..., 0] = anchors
    np.add(anchors, 1, out=pairs[..., 1], casting="unsafe")
    # Rows are in range by construction; checking them again would cost a pass.
    records = np.take(opened.records, pairs, axis=0, mode="clip")

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
    found["mask"] = np.ones(numbers.shape, real)
    for root in sorted(opened.lacks):
        found[f"{root}_mask"] = layout.view(records, f"has_{root}").astype(real)
        beside = opened.added.get(root)
        if beside is not None and beside.has is not None:
            np.maximum(found[f"{root}_mask"], beside.has[positions], out=found[f"{root}_mask"])
    found["indices"] = positions.astype(np.int64)
    if config.episode_ids:
        found["episode_ids"] = index.ids_at(found["indices"])
    return found


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
    if len(roots) == len(views):
        return [dict(zip(views, row, strict=True)) for row in zip(*views.values(), strict=True)]
    batches = []
    for row in zip(*views.values(), strict=True):
        flat = dict(zip(views, row, strict=True))
        batches.append({root: nest(root, flat) for root in roots})
    return batches


def rows_per_gather(row_bytes: int, rows: int, most: int = 64, budget: int = 8 << 20) -> int:
    """Returns how many batches to gather at once: many, but within a cache-friendly budget."""
    return max(1, min(most, budget // max(1, SPAN * row_bytes * rows)))
