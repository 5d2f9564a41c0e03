"""A uniform sample of rows that depends on the rows alone, never on their order or sharding.

Every row gets a 64-bit hash of (its episode's content, its step); the k smallest hashes are the
sample. Two samples merge into the sample of both, so engines may split the data as they like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_ROWS = 50_000
SAMPLE_VALUES = 1 << 21
"""Numbers a sample holds at most: wide rows make a smaller one."""


@dataclass(frozen=True)
class RowSample:
    """The rows of smallest hash, in order of their hashes."""

    keys: np.ndarray  # (n,) uint64
    rows: np.ndarray  # (n, S) float64
    owners: np.ndarray  # (n,) uint64, content hash of the episode each row is of

    @property
    def limit(self) -> int:
        """The most rows that a sample of this width holds."""
        width = int(self.rows.shape[1])
        return max(1, min(SAMPLE_ROWS, SAMPLE_VALUES // max(width, 1)))


def sample_rows(rows: np.ndarray, fingerprints: np.ndarray, steps: np.ndarray) -> RowSample:
    """Returns the sample of a block of rows.

    Args:
        rows: (N, S) float64.
        fingerprints: (N,) uint64, of the episode that each row belongs to.
        steps: (N,) integers, its index within that episode.
    """
    return _smallest(RowSample(mix(fingerprints, steps), rows, fingerprints))


def merge_samples(one: RowSample, two: RowSample) -> RowSample:
    """Returns the sample of both sets of rows together."""
    return _smallest(
        RowSample(
            np.concatenate([one.keys, two.keys]),
            np.concatenate([one.rows, two.rows]),
            np.concatenate([one.owners, two.owners]),
        )
    )


def mix(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns well-mixed 64-bit hashes of (seed, step) pairs (Steele et al.'s SplitMix64)."""
    key = seeds.astype(np.uint64) + steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(key ^ (key >> np.uint64(31)))


def _smallest(sample: RowSample) -> RowSample:
    order = np.argsort(sample.keys, kind="stable")[: sample.limit]
    return RowSample(sample.keys[order], sample.rows[order], sample.owners[order])
