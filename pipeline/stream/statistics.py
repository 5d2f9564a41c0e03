"""Statistics of a version's fields, by which streams scale them.

The numbers are those that `penstock stats` shows: of the real entries of the kept steps, each value
of a row for itself, and one number for all of a row of more than 64. A pass reads block by block;
blocks are merged by Chan's update in float64, in version order, so that all ranks find the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.store.reader import Version
from schemas.errors import UsageError
from schemas.packed import plain
from schemas.transforms import FieldStatistics

MOST_VALUES = 64
"""Of a row, up to which each has numbers of its own."""


def field_statistics(
    versions: Sequence[tuple[Version, str | None]], name: str, values: int
) -> FieldStatistics:
    """Returns the statistics of one field over some versions, rows alike.

    Args:
        versions: each with the spec whose episodes count; None for all.
        name: full field name.
        values: of one row.

    Raises:
        UsageError: if a value is no finite number, or there is none.
    """
    width = values if values <= MOST_VALUES else 1
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for rows in _pieces(versions, name):
        flat = rows.reshape(-1, width).astype(np.float64, copy=False)
        if not len(flat):
            continue
        here = flat.mean(axis=0)
        spread = np.square(flat - here).sum(axis=0)
        total = count + len(flat)
        away = here - mean
        squares = squares + spread + away**2 * (count * len(flat) / total)
        mean = mean + away * (len(flat) / total)
        low, high = np.minimum(low, flat.min(axis=0)), np.maximum(high, flat.max(axis=0))
        count = total
    if not count or not np.isfinite([mean, squares, low, high]).all():
        raise UsageError(
            f"Expected finite numbers to normalise {name!r} by, came "
            f"{'others' if count else 'no rows'}; leave it out of normalize=."
        )
    return FieldStatistics(
        version="+".join(version.id for version, _ in versions),
        count=count * width // values,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(squares / count).tolist()),
        min=tuple(low.tolist()),
        max=tuple(high.tolist()),
    )


def _pieces(versions: Iterable[tuple[Version, str | None]], name: str) -> Iterator[np.ndarray]:
    for version, spec in versions:
        for rows in version.iter_field(name, spec=spec):
            yield np.asarray(plain(rows))
