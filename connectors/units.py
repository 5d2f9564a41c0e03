"""Cuts a dataset into units of work: consecutive episodes of bounded size.

A unit is what an engine hands to a worker, so it is small enough to hold in memory and large enough
that opening the file does not dominate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from connectors.base import UNIT_STEPS, Unit
from schemas.errors import SourceError

UNIT_BYTES = 256 * 2**20
"""Bytes of observations and actions that one unit should hold at most (images fill it first)."""
NARROW_TIMES, NARROW_BYTES = 4, 32 * 2**20
"""Where rows are known to be narrow a unit may have so many times the steps, of so many bytes:
borders of units are where files are opened again and chunks inflated twice."""
RUN_BYTES = 16 * 2**20
"""What to read at once of a unit of wide rows, about: memory that was just freed costs less than
new memory, whose pages the kernel must find and clear."""
_MOST_STEPS = 2**40
"""Far more than any disk holds; a claim beyond it is none to count with."""


def plan_units(
    lengths: Sequence[int] | np.ndarray, step_bytes: int = 0
) -> list[tuple[int, int, int]]:
    """Returns `(start, stop, steps)` of each unit, episodes in order.

    Args:
        lengths: steps of each episode.
        step_bytes: bytes of one step, where known.

    Raises:
        SourceError: for a length that no episode can have.
    """
    if any(not 0 <= length <= _MOST_STEPS for length in lengths):
        raise SourceError(
            f"Expected episodes of at most {_MOST_STEPS:,} steps, one claims "
            f"{max(lengths, key=abs):,}."
        )
    most = min(UNIT_STEPS, max(1, UNIT_BYTES // max(1, step_bytes)))
    if step_bytes:
        most = max(most, min(NARROW_TIMES * UNIT_STEPS, NARROW_BYTES // step_bytes))
    before = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
    units = []
    start = 0
    while start < len(lengths):
        stop = int(np.searchsorted(before, before[start] + most, side="right")) - 1
        stop = max(stop, start + 1)
        units.append((start, stop, int(before[stop] - before[start])))
        start = stop
    return units


def check_count(unit: Unit, count: int) -> None:
    """Makes sure that a source still has the episodes that a unit was planned for.

    Raises:
        SourceError: if it has fewer now.
    """
    if unit.stop > count:
        raise SourceError(
            f"Expected {unit.stop} episodes in {unit.where}, there are {count} now: it changed "
            f"while it was read.",
            where=unit.where,
        )
