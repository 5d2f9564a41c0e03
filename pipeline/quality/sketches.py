"""Summaries of many values in a few kB, merged over shards: quantiles and distinct counts.

**Quantiles** are KLL (Karnin, Lang, Liberty 2016), k = 200. Merging is *not* exact: which items a
compaction keeps is drawn at random, so two orders of the same shards give quantiles that differ
within the rank error, 1.33 % of the rows for one quantile at 99 % confidence (1.65 % for all at
once) in any order and tree of merges. Count, smallest and largest value are exact, and so is
everything up to k values.

**Distinct counts** are HyperLogLog (Flajolet et al. 2007), 2^12 registers: merging takes the larger
of two registers, so any order and tree of merges gives the same registers. The library's faster
estimator remembers the order of arrival; it is not used. Standard error 1.04 / sqrt(4096) = 1.6 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from datasketches import hll_sketch, hll_union, kll_doubles_sketch, tgt_hll_type

from schemas.errors import DamagedStoreError

KLL_K = 200
RANK_ERROR = 0.0133
"""Of one quantile, at 99 % confidence."""
LG_K = 12
COUNT_ERROR = 1.04 / 2 ** (LG_K / 2)
"""Relative standard error of a distinct count."""


class Quantiles:
    """A sketch of the quantiles of some numbers; never changed once made."""

    def __init__(self, sketch: kll_doubles_sketch) -> None:
        self._sketch = sketch

    @classmethod
    def of(cls, values: np.ndarray) -> Quantiles:
        """Returns the sketch of an array of numbers; NaN is left out."""
        sketch = kll_doubles_sketch(KLL_K)
        sketch.update(np.ascontiguousarray(values, np.float64).ravel())
        return cls(sketch)

    @classmethod
    def from_bytes(cls, data: bytes) -> Quantiles:
        """Inverse of `to_bytes`."""
        return cls(_read(kll_doubles_sketch, data))

    def to_bytes(self) -> bytes:
        """Returns the sketch as some 2 kB."""
        return bytes(self._sketch.serialize())

    def merge(self, other: Quantiles) -> Quantiles:
        """Returns the sketch of both sets of numbers."""
        merged = kll_doubles_sketch(KLL_K)
        merged.merge(self._sketch)
        merged.merge(other._sketch)
        return Quantiles(merged)

    @property
    def count(self) -> int:
        """Numbers seen, exactly."""
        return int(self._sketch.n)

    def at(self, ranks: Sequence[float]) -> list[float]:
        """Returns the numbers at some ranks (0 to 1); NaN where none was seen."""
        if not self.count:
            return [float("nan")] * len(ranks)
        found = self._sketch.get_quantiles(list(ranks), True)
        ends = {0.0: self._sketch.get_min_value(), 1.0: self._sketch.get_max_value()}
        return [float(ends.get(rank, value)) for rank, value in zip(ranks, found, strict=True)]

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """Returns the share of numbers at most as large as each of some values."""
        if not self.count:
            return np.full(len(values), np.nan)
        return np.array([self._sketch.get_rank(float(v), True) for v in values])


class Uniques:
    """A sketch of how many distinct values were seen; never changed once made."""

    def __init__(self, sketch: hll_sketch) -> None:
        self._sketch = sketch

    @classmethod
    def of(cls, hashes: np.ndarray) -> Uniques:
        """Returns the sketch of an array of whole numbers that are equal where values are."""
        sketch = hll_sketch(LG_K, tgt_hll_type.HLL_4)
        for value in np.unique(hashes).astype(np.uint64).view(np.int64).tolist():
            sketch.update(value)
        return cls(sketch)

    @classmethod
    def from_bytes(cls, data: bytes) -> Uniques:
        """Inverse of `to_bytes`."""
        return cls(_read(hll_sketch, data))

    def to_bytes(self) -> bytes:
        """Returns the sketch as at most some 2 kB; few values take 4 bytes each."""
        return bytes(self._sketch.serialize_compact())

    def merge(self, other: Uniques) -> Uniques:
        """Returns the sketch of both sets of values."""
        return union((self, other))

    @property
    def estimate(self) -> float:
        """Distinct values seen, the same however the sketch was merged."""
        # A union with itself keeps all registers, and forgets the order in which they were filled.
        both = hll_union(LG_K)
        both.update(self._sketch)
        both.update(self._sketch)
        return float(both.get_estimate())


def union(sketches: Iterable[Uniques]) -> Uniques:
    """Returns the sketch of all the values that any of some sketches saw."""
    merged = hll_union(LG_K)
    for sketch in sketches:
        merged.update(sketch._sketch)
    return Uniques(merged.get_result(tgt_hll_type.HLL_4))


def _read(kind: type, data: bytes) -> hll_sketch | kll_doubles_sketch:
    try:
        return kind.deserialize(bytes(data))  # type: ignore[attr-defined]
    except (ValueError, RuntimeError, IndexError) as error:
        raise DamagedStoreError(f"Expected a sketch, came something else ({error}).") from None
