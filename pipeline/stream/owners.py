"""Which block holds a row: a table, as a binary search would take longer than the gather itself."""

from __future__ import annotations

import numpy as np

ENTRIES = 1 << 16
"""Of the table; with more it would not stay in the cache of a processor."""


class Owners:
    """The blocks of rows.

    Args:
        ends: (blocks,) int64, one past the last row of each, not falling.
    """

    def __init__(self, ends: np.ndarray) -> None:
        self._ends = ends
        rows = int(ends[-1]) if len(ends) else 0
        self._bits = max(0, (rows // ENTRIES).bit_length())
        firsts = np.arange((rows >> self._bits) + 1) << self._bits
        found = np.searchsorted(ends, firsts, side="right")
        self._table = np.minimum(found, max(len(ends) - 1, 0))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the first block that ends after each row, (n,) int64.

        Args:
            rows: (n,) int64, each before the last end.
        """
        owner = np.take(self._table, rows >> self._bits, mode="clip")
        while (is_later := rows >= np.take(self._ends, owner)).any():
            owner += is_later
        return owner
