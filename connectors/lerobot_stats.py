"""Statistics that LeRobot keeps of every episode and of the whole dataset.

Numbers are summed up per element over the steps; pictures per channel in [0, 1], over a sample of
the frames that LeRobot's own rule chooses. Quantiles of an episode are exact; those of the dataset
are the mean of the episodes' own, weighted by steps, as LeRobot joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Stats = Mapping[str, np.ndarray]
"""`min max mean std` and quantiles float64 of one shape, `count` (1,) int64."""


def sampled(rows: int) -> np.ndarray:
    """Returns the rows whose pictures are looked at: `rows ** 0.75`, 100 to 10,000."""
    count = max(min(rows, 100), min(int(rows**0.75), 10_000))
    return np.round(np.linspace(0, rows - 1, count)).astype(np.int64)


def of_numbers(rows: np.ndarray) -> Stats:
    """Returns the statistics of (T, ...) numbers over the steps; scalars as shape (1,)."""
    return _over_rows(rows[:, None] if rows.ndim == 1 else rows, len(rows))


def of_pictures(frames: np.ndarray) -> Stats:
    """Returns the statistics of (N, H, W[, C]) pictures per channel, as shape (C, 1, 1)."""
    largest = 255 if frames.dtype == np.uint8 else 65535
    step = max(1, max(frames.shape[1:3]) // 150) if max(frames.shape[1:3]) >= 300 else 1
    seen = frames[:, ::step, ::step] if frames.ndim == 4 else frames[:, ::step, ::step, None]
    found = _over_rows(seen.reshape(-1, seen.shape[-1]).astype(np.float32) / largest, len(frames))
    return {n: a if n == "count" else a.reshape(-1, 1, 1) for n, a in found.items()}


def _over_rows(rows: np.ndarray, count: int) -> Stats:
    """Statistics over the first axis, which has at least one row."""
    values = rows.astype(np.float64)
    with np.errstate(all="ignore"):  # NaN and infinities are data; they show in what comes out
        found = {
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "mean": values.mean(axis=0),
            "std": values.std(axis=0),
            "count": np.array([count], np.int64),
        }
        marks = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {**found, **dict(zip(QUANTILES, marks, strict=True))}


@dataclass
class Total:
    """Statistics of a whole dataset, joined from those of its episodes one after the other."""

    count: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, stats: Stats) -> None:
        """Adds an episode's statistics."""
        count = int(stats["count"][0])
        if not self.count:
            self.count, self.sums = count, {n: np.array(a) for n, a in stats.items()}
            return
        total = self.count + count
        weight = count / total
        with np.errstate(all="ignore"):
            shift = stats["mean"] - self.sums["mean"]
            variance = (1 - weight) * self.sums["std"] ** 2 + weight * stats["std"] ** 2
            self.sums["std"] = np.sqrt(variance + weight * (1 - weight) * shift**2)
            self.sums["min"] = np.minimum(self.sums["min"], stats["min"])
            self.sums["max"] = np.maximum(self.sums["max"], stats["max"])
            for name in ("mean", *QUANTILES):
                self.sums[name] = self.sums[name] + weight * (stats[name] - self.sums[name])
        self.sums["count"] = np.array([total], np.int64)
        self.count = total
