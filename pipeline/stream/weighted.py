"""Draws in proportion to a column of episodes: an inverse-CDF table of integers.

Weights become whole numbers once, so the same row is drawn on any machine: no float is compared
when samples are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.reader import Version
from pipeline.stream import plan
from pipeline.stream.index import TransitionIndex
from schemas.errors import ConfigError
from schemas.stream import StreamConfig

_TOTAL_BITS = 60


@dataclass(frozen=True)
class Weights:
    """One weight per episode, the same for each of its transitions."""

    column: str
    units: np.ndarray  # (E,) int64, whole shares of one transition
    ends: np.ndarray  # (E,) int64, running total over transitions
    importance: np.ndarray  # (E,) float64, 1 / (N p) of one transition
    effective: float
    """Effective sample size in transitions, (sum w)^2 / sum w^2 (Kish, 1965)."""

    def draw(self, words: np.ndarray, index: TransitionIndex) -> tuple[np.ndarray, np.ndarray]:
        """Returns transitions, and what undoes how often each is drawn, of the shape of words."""
        drawn = plan.below(words, int(self.ends[-1]))
        episodes = np.searchsorted(self.ends, drawn, side="right")
        units = self.units[episodes]
        before = self.ends[episodes] - units * index.spans.count[episodes]
        numbers = index.spans.number[episodes] + (drawn - before) // units
        return numbers, self.importance[episodes]


def episode_weights(version: Version, index: TransitionIndex, config: StreamConfig) -> Weights:
    """Returns the table that draws by the configured column.

    Raises:
        UnknownNameError: if there is no such column.
        ConfigError: if one of the episodes that are drawn from has no finite weight of at least 0,
            or none has one above 0.
    """
    column = config.weights or ""
    count = index.spans.count
    table = version.episodes(columns=["episode_id", column])
    ids = table["episode_id"].combine_chunks()
    at = pc.index_in(pa.array(index.episode_ids, ids.type), ids).to_numpy()
    values = _numbers(table[column], column)[at]
    values = np.where(count > 0, values, 0.0)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise ConfigError(
            f"Expected weights of at least 0 in the column {column!r}, came {values[bad][0]} for "
            f"{index.episode_ids[bad][0]!r} and {int(bad.sum()) - 1} more; choose episodes that "
            f"have one with a curated version.",
            where="weights",
        )
    if not values.any():
        raise ConfigError(
            f"Expected a weight above 0 in the column {column!r}, came none.", where="weights"
        )
    values = values / values.max()
    total = math.fsum(values * count)
    # A power of two scales without rounding; any weight above 0 keeps at least one share.
    scale = 2.0 ** (_TOTAL_BITS - math.frexp(total)[1])
    units = np.maximum(np.floor(values * scale).astype(np.int64), values > 0)
    ends = np.cumsum(units * count)
    share = units / float(ends[-1])
    with np.errstate(divide="ignore"):
        importance = 1 / (share * count.sum())
    return Weights(
        column=column,
        units=units,
        ends=ends,
        importance=importance,
        effective=total**2 / float((values**2 * count).sum()),
    )


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column as float64, NaN where it is null."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ConfigError(
            f"Expected a column of numbers to draw by, came {name!r} of {kind}.", where="weights"
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    found: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    return found
